//! Reaching the other end's socket.

use std::io;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::attachment::Endpoint;

/// The longest answer to `CONNECT`.
const MAX_ANSWER: usize = 64;

pub(crate) async fn connect(endpoint: &Endpoint) -> io::Result<UnixStream> {
    match endpoint {
        Endpoint::Unix(path) => UnixStream::connect(path).await,
        Endpoint::Vsock { uds, port } => connect_vsock(uds, *port).await,
    }
}

/// `CONNECT 9999` and `OK 1073741824`, each on a line. A guest in which nothing listens hangs up instead.
async fn connect_vsock(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut answer = Vec::with_capacity(MAX_ANSWER);
    loop {
        // Byte by byte: what comes behind the newline is the guest's already.
        match stream.read_u8().await {
            Ok(b'\n') => break,
            Ok(byte) if answer.len() < MAX_ANSWER => answer.push(byte),
            Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "an endless answer to CONNECT")),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let message = format!("nothing listens on vsock port {port} in the guest");
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, message));
            }
            Err(error) => return Err(error),
        }
    }
    if answer.starts_with(b"OK ") || answer == b"OK" {
        return Ok(stream);
    }
    let message = format!("CONNECT {port} was answered by {:?}", String::from_utf8_lossy(&answer));
    Err(io::Error::new(io::ErrorKind::ConnectionRefused, message))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncBufReadExt;
    use tokio::net::UnixListener;

    use super::*;

    async fn against(answer: &'static [u8]) -> io::Result<UnixStream> {
        let dir = tempfile::tempdir().unwrap();
        let uds = dir.path().join("v");
        let listener = UnixListener::bind(&uds).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut line = String::new();
            tokio::io::BufReader::new(&mut stream).read_line(&mut line).await.unwrap();
            assert_eq!(line, "CONNECT 9999\n");
            stream.write_all(answer).await.unwrap();
        });
        let result = connect(&Endpoint::Vsock { uds, port: 9999 }).await;
        server.await.unwrap();
        result
    }

    #[tokio::test]
    async fn the_vsock_greeting() {
        let mut stream = against(b"OK 1073741824\n{").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'{', "what the guest said first is not lost");
        assert_eq!(against(b"").await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(against(b"NO\n").await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(against(&[b'x'; 100]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
