//! The client against a server on a real socket.

mod support;

use std::time::Duration;

use roost_client::{Client, Error, ErrorCode, has_ended, v1};
use support::TestServer;

#[tokio::test]
async fn calls_share_a_connection_and_carry_the_peer() {
    let server = TestServer::start();
    let client = Client::connect_unix(&server.socket);
    let calls = (0..64).map(|n| {
        let client = client.clone();
        async move { client.get_vm_info(&format!("vm{n}")).await }
    });
    let answers = futures::future::try_join_all(calls).await.unwrap();
    let me = std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap();
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(answer.vm_id, format!("vm{n}"));
        assert_eq!(answer.backend_info["uid"], me.to_string());
    }
}
