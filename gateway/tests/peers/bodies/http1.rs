//! Both ends of HTTP/1.1 by hand, so that every byte, and where it ends, is the test's.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::plan::{Case, End, Framing, Order, Received, Rng, Shape, Speaks};
use super::{Book, HOST1, HOST2};

/// A body as it is on the wire, in the pieces in which it is written.
fn wire(shape: &Shape) -> Vec<Vec<u8>> {
    let (bytes, mut rng) = (shape.bytes(), Rng(shape.seed ^ 1));
    let (mut out, mut at) = (Vec::new(), 0);
    for piece in &shape.pieces {
        let data = &bytes[at..at + piece];
        at += piece;
        if shape.framing != Framing::Unknown {
            out.push(data.to_vec());
            continue;
        }
        let size = match rng.below(4) {
            0 => format!("{piece:X}\r\n"),
            1 => format!("000{piece:x}\r\n"),
            2 => format!("{piece:x};name=\"va;lue\"\r\n"),
            _ => format!("{piece:x}\r\n"),
        };
        out.push([size.as_bytes(), data, b"\r\n"].concat());
    }
    if shape.framing == Framing::Unknown {
        let trailers = if shape.trailers { format!("X-Checksum: {}\r\n", shape.checksum()) } else { String::new() };
        out.push(format!("0\r\n{trailers}\r\n").into_bytes());
    }
    out
}

fn framing(shape: &Shape) -> String {
    match shape.framing {
        Framing::Length => format!("Content-Length: {}\r\n", shape.length()),
        Framing::Unknown => "Transfer-Encoding: chunked\r\n".into(),
        Framing::Eof => "Connection: close\r\n".into(),
    }
}

/// Writes head and body up to where it is cut, the last piece for later if `hold`; gives what is left.
async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    head: String,
    shape: &Shape,
    hold: bool,
) -> std::io::Result<Vec<u8>> {
    let mut pieces = wire(shape);
    if shape.end != End::Whole {
        let all: usize = pieces.iter().map(Vec::len).sum();
        // Never all of it, unless the end of it is the end of the connection.
        let mut left = all.saturating_sub(1) * shape.cut_at / 1_000;
        for piece in &mut pieces {
            piece.truncate(left);
            left -= piece.len();
        }
    }
    let held = if hold { pieces.pop().unwrap_or_default() } else { Vec::new() };
    let mut first = head.into_bytes();
    for piece in pieces {
        first.extend_from_slice(&piece);
        stream.write_all(&first).await?;
        first.clear();
    }
    stream.write_all(&first).await?;
    stream.flush().await?;
    Ok(held)
}

/// A reader with what it has read ahead.
struct Reader<S>(S, Vec<u8>);

impl<S: AsyncRead + Unpin> Reader<S> {
    async fn more(&mut self) -> Result<(), String> {
        match self.0.read_buf(&mut self.1).await {
            Ok(0) => Err("closed".into()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn line(&mut self) -> Result<String, String> {
        loop {
            if let Some(end) = self.1.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.1.drain(..end + 2).take(end).collect();
                return String::from_utf8(line).map_err(|_| "not text".into());
            }
            self.more().await?;
        }
    }

    /// First line and fields.
    async fn head(&mut self) -> Result<(String, HeaderMap), String> {
        let first = self.line().await?;
        Ok((first, self.fields().await?))
    }

    async fn fields(&mut self) -> Result<HeaderMap, String> {
        let mut fields = HeaderMap::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(": ").ok_or_else(|| format!("no field: {line:?}"))?;
            let name: HeaderName = name.parse().map_err(|_| format!("no name: {line:?}"))?;
            fields.append(name, HeaderValue::from_str(value).map_err(|_| format!("no value: {line:?}"))?);
        }
    }

    async fn take(&mut self, mut length: usize, into: &mut Received) -> Result<(), String> {
        while length > 0 {
            if self.1.is_empty() {
                self.more().await?;
            }
            let part = length.min(self.1.len());
            into.bytes.extend(self.1.drain(..part));
            length -= part;
        }
        Ok(())
    }

    async fn body(&mut self, fields: &HeaderMap, until_eof: bool, into: &mut Received) -> Result<(), String> {
        if fields.get("transfer-encoding").is_some_and(|value| value == "chunked") {
            loop {
                let line = self.line().await?;
                let size = line.split(';').next().unwrap_or("");
                let size = usize::from_str_radix(size, 16).map_err(|_| format!("no size: {line:?}"))?;
                if size == 0 {
                    into.trailers = self.fields().await?;
                    return Ok(());
                }
                self.take(size, into).await?;
                if !self.line().await?.is_empty() {
                    return Err("chunk without end".into());
                }
            }
        }
        if let Some(length) = fields.get("content-length") {
            let length = length.to_str().unwrap_or("").parse().map_err(|_| format!("no length: {length:?}"))?;
            return self.take(length, into).await;
        }
        if !until_eof {
            return Ok(());
        }
        loop {
            into.bytes.append(&mut self.1);
            match self.more().await {
                Ok(()) => {}
                Err(closed) if closed == "closed" => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    async fn message(&mut self, fields: &HeaderMap, until_eof: bool, status: u16) -> Received {
        let mut received = Received { status, ..Received::default() };
        match self.body(fields, until_eof, &mut received).await {
            Ok(()) => Received { is_whole: true, ..received },
            Err(why) => received.broke(why),
        }
    }
}

/// Ends a connection as the shape says; true if it is to be reset.
fn reset(stream: &TcpStream, shape: &Shape) {
    if let End::Reset(_) = shape.end {
        let _ = SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
    }
}

/// Sends the cases one after the other, on one connection for as long as it lasts.
pub(crate) async fn client(entry: std::net::SocketAddr, backend: Speaks, cases: Vec<Case>, book: Arc<Book>) {
    let mut connection: Option<(TcpStream, Vec<u8>)> = None;
    for case in cases {
        let (mut stream, ahead) = match connection.take() {
            Some(connection) => connection,
            None => (TcpStream::connect(entry).await.unwrap(), Vec::new()),
        };
        let _ = stream.set_nodelay(true);
        let host = if backend == Speaks::Http2 { HOST2 } else { HOST1 };
        let version = if case.client == Speaks::Http10 { "1.0" } else { "1.1" };
        let head = format!(
            "POST /case/{} HTTP/{version}\r\nHost: {host}\r\n{}TE: trailers\r\nConnection: TE\r\n\r\n",
            case.number,
            framing(&case.request)
        );
        let outcome = {
            let (read, mut write_half) = stream.split();
            let mut reader = Reader(read, ahead);
            let sending = async {
                let sent = write(&mut write_half, head, &case.request, false).await;
                if case.request.end == End::Cut {
                    let _ = write_half.shutdown().await;
                }
                sent
            };
            let receiving = async {
                let (first, fields) = loop {
                    let (first, fields) = reader.head().await?;
                    if !first.starts_with("HTTP/1.1 1") {
                        break (first, fields);
                    }
                };
                let status = first.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(first)?;
                let received = reader.message(&fields, true, status).await;
                let closes = fields.get("connection").is_some_and(|value| value == "close");
                let until_eof = !fields.contains_key("content-length") && !fields.contains_key("transfer-encoding");
                Ok::<_, String>((received, closes, until_eof))
            };
            if let End::Reset(_) = case.request.end {
                let _ = sending.await;
                Err("we have reset it".to_owned())
            } else {
                let (sent, received) = tokio::join!(sending, receiving);
                // The kernel says once that a connection was reset: where a write has heard it, the next read sees an end.
                let received = match (sent, received) {
                    (Err(error), Ok((received, _, true))) => Ok((received.broke(error), true)),
                    (_, received) => received.map(|(received, closes, _)| (received, closes)),
                };
                received.map(|(received, closes)| (received, closes, reader.1))
            }
        };
        reset(&stream, &case.request);
        let received = match outcome {
            Ok((received, closes, ahead)) => {
                let keeps =
                    received.is_whole && !closes && case.client == Speaks::Http11 && case.request.end == End::Whole;
                if keeps {
                    connection = Some((stream, ahead));
                }
                received
            }
            Err(why) => Received::default().broke(why),
        };
        book.client(&case, received);
    }
}

/// Serves cases to gateways.
pub(crate) async fn backend(book: Arc<Book>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let _ = stream.set_nodelay(true);
            tokio::spawn(connection(stream, Arc::clone(&book)));
        }
    });
    address
}

async fn connection(mut stream: TcpStream, book: Arc<Book>) {
    let mut ahead = Vec::new();
    loop {
        let (read, mut write_half) = stream.split();
        let mut reader = Reader(read, std::mem::take(&mut ahead));
        let (first, fields) = match reader.head().await {
            Ok(head) => head,
            Err(why) => {
                if !reader.1.is_empty() {
                    book.fault(format!("{why}; left on a connection: {:?}", String::from_utf8_lossy(&reader.1)));
                }
                return;
            }
        };
        let Some(number) = first.strip_prefix("POST /case/").and_then(|rest| rest.split(' ').next()) else {
            if !first.starts_with("GET / ") {
                return book.fault(format!("no request: {first:?}"));
            }
            if write_half.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.is_err() {
                return;
            }
            ahead = reader.1;
            continue;
        };
        let case = book.case(number.parse().unwrap());
        let head = format!("HTTP/1.1 200 OK\r\n{}\r\n", framing(&case.response));
        let (received, answered) = match case.order {
            Order::After => {
                let received = reader.message(&fields, false, 0).await;
                let answered = write(&mut write_half, head, &case.response, false).await.map(drop);
                (received, answered)
            }
            Order::Before => {
                let answered = write(&mut write_half, head, &case.response, false).await.map(drop);
                if case.response.framing == Framing::Eof && case.response.end == End::Whole {
                    let _ = write_half.shutdown().await;
                }
                let cut = case.response.end != End::Whole;
                (
                    if cut {
                        Received::default().broke("answered in part")
                    } else {
                        reader.message(&fields, false, 0).await
                    },
                    answered,
                )
            }
            Order::Meanwhile => {
                let hold = case.response.end == End::Whole;
                let (received, held) =
                    tokio::join!(reader.message(&fields, false, 0), write(&mut write_half, head, &case.response, hold));
                let answered = match held {
                    Ok(held) => write_half.write_all(&held).await,
                    Err(error) => Err(error),
                };
                (received, answered)
            }
        };
        let goes_on = received.is_whole
            && answered.is_ok()
            && case.response.end == End::Whole
            && case.response.framing != Framing::Eof;
        book.backend(&case, received);
        ahead = reader.1;
        if !goes_on {
            reset(&stream, &case.response);
            if case.response.is_whole() || case.response.end == End::Cut {
                // What is unread would make a reset of it.
                let _ = stream.shutdown().await;
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
            }
            return;
        }
    }
}
