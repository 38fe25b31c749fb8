//! One socket, every protocol: Connect (JSON over HTTP/1.1, binary and JSON over HTTP/2), gRPC,
//! gRPC-Web, health, reflection and plain HTTP, within their limits.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use connectrpc::client::{CallOptions, ClientConfig, Http2Connection, SharedHttp2Connection};
use connectrpc::{CodecFormat, ErrorCode, Protocol};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use roost_client::v1::*;
use serde_json::{Value, json};
use support::{DEFAULT_DEADLINE, MOST_BYTES, TestServer};

const EVERY_WAY: [(Protocol, CodecFormat); 6] = [
    (Protocol::Connect, CodecFormat::Proto),
    (Protocol::Connect, CodecFormat::Json),
    (Protocol::Grpc, CodecFormat::Proto),
    (Protocol::Grpc, CodecFormat::Json),
    (Protocol::GrpcWeb, CodecFormat::Proto),
    (Protocol::GrpcWeb, CodecFormat::Json),
];

fn config(protocol: Protocol, codec: CodecFormat) -> ClientConfig {
    ClientConfig::new("http://localhost".parse().unwrap()).with_protocol(protocol).with_codec_format(codec)
}

fn connection(server: &TestServer) -> SharedHttp2Connection {
    Http2Connection::lazy_unix(&server.socket, "http://localhost".parse().unwrap()).shared(16)
}

/// A request as `curl --http1.1 --unix-socket` sends it.
async fn http1(server: &TestServer, request: Request<Full<Bytes>>) -> (StatusCode, Bytes) {
    let stream = tokio::net::UnixStream::connect(&server.socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    drop(sender);
    connection.await.unwrap().unwrap();
    (status, body)
}

fn post(path: &str, content_type: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(path)
        .header("host", "localhost")
        .header("content-type", content_type)
        .body(Full::new(body.into()))
        .unwrap()
}

async fn json(server: &TestServer, method: &str, body: &Value) -> (StatusCode, Value) {
    let (status, answer) =
        http1(server, post(&format!("/vmm.v1.{method}"), "application/json", body.to_string())).await;
    (status, serde_json::from_slice(&answer).unwrap())
}

#[tokio::test]
async fn every_protocol_carries_calls_errors_and_streams() {
    let server = TestServer::start();
    let connection = connection(&server);
    for (protocol, codec) in EVERY_WAY {
        let way = format!("{protocol:?} {codec}");
        let client = VmServiceClient::new(connection.clone(), config(protocol, codec));
        let create = |name: &str| CreateVmRequest { name: name.to_owned(), ..Default::default() };
        let answer = client.create_vm(create("web")).await.expect(&way).into_owned();
        assert_eq!((answer.vm_id.as_str(), answer.state), ("web", VmState::Created.into()), "{way}");

        let error = client.create_vm(create("bad")).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{way}");
        assert!(error.details[0].type_url.ends_with("vmm.v1.ErrorDetail"), "{way}: {error:?}");

        let mut watch = client.watch_vms(WatchVmsRequest::default()).await.expect(&way);
        for position in 1..=3 {
            let event = watch.message::<WatchVmsResponse>().await.expect(&way).expect(&way).to_owned_message().event;
            assert_eq!(event.position, position, "{way}");
        }

        // gRPC-Web has no streams of requests.
        if protocol != Protocol::GrpcWeb {
            let mut console = client.attach_console().await.expect(&way);
            let request = AttachConsoleRequest { vm_id: "web".to_owned(), ..Default::default() };
            console.send(request).await.expect(&way);
            for (said, heard) in [("", "this is web\n"), ("ls", "LS"), ("exit", "EXIT")] {
                if !said.is_empty() {
                    let data = said.as_bytes().to_vec();
                    console.send(AttachConsoleRequest { data, ..Default::default() }).await.expect(&way);
                }
                let answer = console.message::<AttachConsoleResponse>().await.expect(&way).expect(&way);
                assert_eq!(answer.data(), heard.as_bytes(), "{way}");
            }
        }
    }
}

#[tokio::test]
async fn json_over_http1_is_what_curl_sends() {
    let server = TestServer::start();
    let (status, answer) = json(&server, "VmService/CreateVm", &json!({"name": "web"})).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(answer["vmId"], "web");
    assert_eq!(answer["state"], "VM_STATE_CREATED");
    assert_eq!(answer["operation"]["status"], "OPERATION_STATUS_SUCCEEDED");

    let (status, answer) = json(&server, "VmService/CreateVm", &json!({"name": "bad"})).await;
    assert_eq!((status, &answer["code"]), (StatusCode::BAD_REQUEST, &json!("invalid_argument")));
    assert_eq!(answer["details"][0]["type"], "vmm.v1.ErrorDetail");

    let (status, answer) = json(&server, "VmService/NoSuch", &json!({})).await;
    assert_eq!((status, &answer["code"]), (StatusCode::NOT_FOUND, &json!("unimplemented")));

    // What only reads may be asked by GET.
    let get = Request::get("/vmm.v1.SystemService/GetVersion?connect=v1&encoding=json&message=%7B%7D")
        .header("host", "localhost")
        .body(Full::default())
        .unwrap();
    let (status, answer) = http1(&server, get).await;
    assert_eq!((status, answer.as_ref()), (StatusCode::OK, br#"{"version":"0.0.0-test"}"#.as_slice()));

    let health = Request::get("/_/health").header("host", "localhost").body(Full::default()).unwrap();
    assert_eq!(http1(&server, health).await, (StatusCode::OK, Bytes::from_static(b"ok")));
}

#[tokio::test]
async fn an_unknown_field_is_refused_with_the_nearest_one() {
    let server = TestServer::start();
    let body = json!({"name": "web", "config": {"storage": [{"pth": "/srv/a.raw"}]}});
    let (status, answer) = json(&server, "VmService/CreateVm", &body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["message"], r#"unknown field "config.storage[0].pth"; did you mean "path"?"#);
    let body = json!({"name": "web", "config": {"cpu": {"vcpuCount": "many"}}});
    let (_, answer) = json(&server, "VmService/CreateVm", &body).await;
    assert_eq!(answer["message"], r#"config.cpu.vcpu_count "many" is not a whole number"#);
    let (status, answer) = http1(&server, post("/vmm.v1.VmService/CreateVm", "application/json", "{\"name\"")).await;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((status, &answer["code"]), (StatusCode::BAD_REQUEST, &json!("invalid_argument")));

    // In a stream the error comes in its last frame: flags, length, JSON.
    let message = br#"{"fromPostion": 1}"#;
    let mut frame = vec![0, 0, 0, 0, message.len() as u8];
    frame.extend(message);
    let (status, answer) = http1(&server, post("/vmm.v1.VmService/WatchVms", "application/connect+json", frame)).await;
    assert_eq!((status, answer[0]), (StatusCode::OK, 2));
    let end: Value = serde_json::from_slice(&answer[5..]).unwrap();
    assert_eq!(end["error"]["message"], r#"unknown field "fromPostion"; did you mean "from_position"?"#);
}

#[tokio::test]
async fn a_call_that_hangs_ends_at_the_deadline_and_a_large_message_at_the_limit() {
    let server = TestServer::start();
    let connection = connection(&server);
    for protocol in [Protocol::Connect, Protocol::Grpc, Protocol::GrpcWeb] {
        let client = VmServiceClient::new(connection.clone(), config(protocol, CodecFormat::Proto));
        let request = GetVmInfoRequest { vm_id: "hang".to_owned(), ..Default::default() };
        let begun = std::time::Instant::now();
        let error = client.get_vm_info(request.clone()).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::DeadlineExceeded, "{protocol:?}");
        assert!(begun.elapsed() >= DEFAULT_DEADLINE);
        let asked = CallOptions::default().with_timeout(DEFAULT_DEADLINE / 10);
        let error = client.get_vm_info_with_options(request, asked).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::DeadlineExceeded, "{protocol:?}");

        let request = CreateVmRequest { name: "x".repeat(MOST_BYTES + 1), ..Default::default() };
        let error = client.create_vm(request).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::ResourceExhausted, "{protocol:?}");
        client.create_vm(CreateVmRequest::default()).await.expect("the connection goes on");
    }
}

#[tokio::test]
async fn health_and_reflection_answer_any_grpc_client() {
    use connectrpc_reflection::wire::v1::{
        ServerReflectionRequest, ServerReflectionResponse, server_reflection_request::MessageRequest,
        server_reflection_response::MessageResponse,
    };
    let server = TestServer::start();
    let connection = connection(&server);
    let grpc = || config(Protocol::Grpc, CodecFormat::Proto);

    let health = connectrpc_health::HealthClient::new(connection.clone(), grpc());
    for service in ["", VM_SERVICE_SERVICE_NAME, SYSTEM_SERVICE_SERVICE_NAME] {
        let request = connectrpc_health::wire::HealthCheckRequest { service: service.to_owned(), ..Default::default() };
        let answer = health.check(request).await.unwrap().into_owned();
        assert_eq!(answer.status, connectrpc_health::wire::ServingStatus::SERVING, "{service}");
    }

    let reflection = connectrpc_reflection::ServerReflectionClient::new(connection, grpc());
    let mut stream = reflection.server_reflection_info().await.unwrap();
    let request = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    stream.send(request).await.unwrap();
    let answer = stream.message::<ServerReflectionResponse>().await.unwrap().unwrap().to_owned_message();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else { panic!("{answer:?}") };
    let names: Vec<String> = list.service.iter().map(|s| s.name.clone()).collect();
    for service in [VM_SERVICE_SERVICE_NAME, OPERATION_SERVICE_SERVICE_NAME, SYSTEM_SERVICE_SERVICE_NAME] {
        assert!(names.iter().any(|n| n == service), "{service} in {names:?}");
    }
}

/// What gRPC's C core (Python, C++, Ruby) sends over a Unix socket: the socket's path, percent-encoded,
/// as the authority. The frames are written by hand, because no Rust library writes them.
#[tokio::test]
async fn a_sockets_path_is_an_authority_too() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = TestServer::start();
    let authority = server.socket.to_str().unwrap().replace('/', "%2F");
    let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
    let fields = [
        (":path", "/vmm.v1.SystemService/GetVersion"),
        (":authority", authority.as_str()),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    for (name, value) in fields {
        block.push(0x40);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [length.as_slice(), &[kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let request = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),              // SETTINGS
        frame(1, 4, 1, &block),           // HEADERS, the whole block
        frame(0, 1, 1, &[0, 0, 0, 0, 0]), // DATA: an empty message, and the end
    ];
    let mut socket = tokio::net::UnixStream::connect(&server.socket).await.unwrap();
    socket.write_all(&request.concat()).await.unwrap();
    let answer = loop {
        let mut head = [0; 9];
        socket.read_exact(&mut head).await.unwrap();
        let [high, middle, low, kind, _, _, _, _, stream] = head;
        let mut payload = vec![0; usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low)];
        socket.read_exact(&mut payload).await.unwrap();
        if stream == 1 {
            break kind;
        }
    };
    assert_eq!(answer, 1, "HEADERS, and not RST_STREAM");
}
