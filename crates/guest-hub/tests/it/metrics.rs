//! Metrics: the last, the hour, the watchers.

use std::time::Duration;

use roost_guest_hub::proto::{MetricsRequest, Request};
use roost_guest_hub::{CallError, HubConfig};

use crate::support::{Bench, Peer, SOON, soon};

fn frame(cpu: u32) -> Vec<u8> {
    format!(r#"{{"type":"metrics","timestamp":"t","data":{{"system":{{"cpu":{{"usage_percent":{cpu}}}}}}}}}"#)
        .into_bytes()
}

async fn subscription(peer: &mut Peer) -> (Vec<String>, u64) {
    match peer.request().await {
        Request::Subscribe(it) => (it.groups, it.interval_ms),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn watchers_share_the_smallest_interval_and_give_it_back() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let ms = Duration::from_millis;
    let mut slow = bench.hub.watch_metrics(bench.vm, vec!["cpu".into()], ms(5000)).await.unwrap();
    assert_eq!(subscription(&mut peer).await, (vec!["cpu".to_owned()], 5000));
    let mut quick = bench.hub.watch_metrics(bench.vm, vec!["memory".into()], ms(100)).await.unwrap();
    assert_eq!(subscription(&mut peer).await, (vec!["cpu".to_owned(), "memory".to_owned()], 100));
    for cpu in [1, 2] {
        peer.text(&frame(cpu)).await;
        let sample = soon("metrics", quick.next()).await.unwrap();
        assert_eq!(sample.data().unwrap()["system"]["cpu"]["usage_percent"], cpu);
        tokio::time::sleep(ms(110)).await;
    }
    assert!(soon("metrics", slow.next()).await.is_some());
    peer.text(&frame(3)).await;
    assert!(tokio::time::timeout(ms(200), slow.next()).await.is_err(), "more often than it asked for");
    drop(quick);
    assert_eq!(subscription(&mut peer).await, (vec!["cpu".to_owned()], 5000));
    drop(slow);
    assert_eq!(subscription(&mut peer).await, (vec![], 30_000));
    let last = bench.hub.metrics(bench.vm).unwrap();
    assert_eq!(last.data().unwrap()["system"]["cpu"]["usage_percent"], 3);
    // The first of half a minute is a point of the hour.
    let history = bench.hub.metrics_history(bench.vm);
    assert_eq!((history.len(), history[0].cpu_percent), (1, 1.0));
    assert_eq!(bench.hub.last_activity(bench.vm), None, "metrics are no activity");
    let error = bench.hub.watch_metrics(bench.vm, vec![], Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, CallError::Invalid { field: "interval", .. }));
}

#[tokio::test]
async fn on_request_and_what_is_none() {
    let mut bench = Bench::with(HubConfig { metrics_bytes: 4096, ..HubConfig::default() }, |_| {});
    let (mut peer, _) = bench.roost().await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn(async move { hub.call(vm, Request::Metrics(MetricsRequest::default()), SOON).await });
    let Request::Metrics(request) = peer.request().await else { panic!() };
    peer.text(&frame(1)).await;
    let id = request.id.unwrap();
    peer.text(format!(r#"{{"type":"metrics","timestamp":"t","data":{{"x":1}},"id":"{id}"}}"#).as_bytes()).await;
    assert_eq!(call.await.unwrap().unwrap().data, Some(serde_json::json!({ "x": 1 })));
    let large = format!(r#"{{"type":"metrics","timestamp":"t","data":{{"x":"{}"}}}}"#, "x".repeat(5000));
    peer.text(large.as_bytes()).await;
    peer.text(br#"{"type":"metrics","timestamp":"t","data":{"x":1},"data":{"x":2}}"#).await;
    // In order: once this is answered, the others were seen.
    let hub = bench.hub.clone();
    let call = tokio::spawn(async move { hub.run(vm, crate::support::run(&["true"]), SOON).await });
    let id = peer.exec().await.id;
    peer.say(crate::support::ran(&id, "")).await;
    call.await.unwrap().unwrap();
    assert_eq!(bench.hub.status(vm).unwrap().dropped.messages, 1, "too long to keep");
    let last = bench.hub.metrics(vm).unwrap();
    assert!(last.data().is_err(), "looked at only now, and refused");
}
