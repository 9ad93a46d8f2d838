//! Both ends of HTTP/2, on `h2`.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};

use super::plan::{Case, End, Framing, Order, Received, Shape, Speaks};
use super::{Book, HOST1, HOST2};

/// Sends the pieces of a body from the first to the last of these.
async fn send(stream: &mut SendStream<Bytes>, shape: &Shape, pieces: Range<usize>) -> Result<(), h2::Error> {
    let bytes = Bytes::from(shape.bytes());
    let mut at: usize = shape.pieces[..pieces.start].iter().sum();
    for piece in &shape.pieces[pieces] {
        let mut data = bytes.slice(at..at + piece);
        at += piece;
        while !data.is_empty() {
            stream.reserve_capacity(data.len());
            match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(capacity)) => stream.send_data(data.split_to(capacity.min(data.len())), false)?,
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            }
        }
    }
    Ok(())
}

/// Sends all of it, or up to where it is cut.
async fn send_all(stream: &mut SendStream<Bytes>, shape: &Shape) -> Result<(), h2::Error> {
    let count = shape.pieces.len();
    send(stream, shape, 0..if shape.end == End::Whole { count } else { count * shape.cut_at / 1_000 }).await?;
    finish(stream, shape)
}

fn finish(stream: &mut SendStream<Bytes>, shape: &Shape) -> Result<(), h2::Error> {
    match shape.end {
        End::Whole if shape.trailers => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-checksum", HeaderValue::from_str(&shape.checksum()).unwrap());
            stream.send_trailers(trailers)
        }
        End::Whole => stream.send_data(Bytes::new(), true),
        // Fewer bytes than it said: all but the length of one that is empty.
        End::Cut if shape.framing == Framing::Length && shape.length() > 0 => stream.send_data(Bytes::new(), true),
        End::Cut => {
            stream.send_reset(Reason::CANCEL);
            Ok(())
        }
        End::Reset(code) => {
            stream.send_reset(code.into());
            Ok(())
        }
    }
}

/// True if the head is all of it.
fn is_bare(shape: &Shape) -> bool {
    shape.end == End::Whole && shape.pieces.is_empty() && !shape.trailers && shape.seed.is_multiple_of(2)
}

async fn receive(mut body: RecvStream, status: u16) -> Received {
    let mut received = Received { status, ..Received::default() };
    while let Some(data) = body.data().await {
        match data {
            Ok(data) => {
                let _ = body.flow_control().release_capacity(data.len());
                received.bytes.extend_from_slice(&data);
            }
            Err(error) => return received.broke(error),
        }
    }
    match body.trailers().await {
        Ok(trailers) => Received { is_whole: true, trailers: trailers.unwrap_or_default(), ..received },
        Err(error) => received.broke(error),
    }
}

/// Sends all cases at once on one connection.
pub(crate) async fn client(entry: SocketAddr, backend: Speaks, cases: Vec<Case>, book: Arc<Book>) {
    let stream = TcpStream::connect(entry).await.unwrap();
    let _ = stream.set_nodelay(true);
    let (sender, connection) =
        h2::client::Builder::new().data_frame_budget(FRAMES_BUDGET).handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut streams = tokio::task::JoinSet::new();
    for case in cases {
        let (mut sender, book) = (sender.clone().ready().await.unwrap(), Arc::clone(&book));
        streams.spawn(async move {
            let host = if backend == Speaks::Http2 { HOST2 } else { HOST1 };
            let mut request = Request::post(format!("http://{host}/case/{}", case.number)).header("te", "trailers");
            if case.request.framing == Framing::Length {
                request = request.header("content-length", case.request.length());
            }
            let is_bare = is_bare(&case.request);
            let (response, mut upload) = sender.send_request(request.body(()).unwrap(), is_bare).unwrap();
            let sending = async {
                if !is_bare {
                    let _ = send_all(&mut upload, &case.request).await;
                }
            };
            let receiving = async {
                match response.await {
                    Ok(response) => {
                        let (parts, body) = response.into_parts();
                        receive(body, parts.status.as_u16()).await
                    }
                    Err(error) => Received::default().broke(error),
                }
            };
            let ((), received) = tokio::join!(sending, receiving);
            book.client(&case, received);
        });
    }
    drop(sender);
    while let Some(stream) = streams.join_next().await {
        stream.unwrap();
    }
    connection.abort();
}

/// Serves cases to gateways.
pub(crate) async fn backend(book: Arc<Book>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let _ = stream.set_nodelay(true);
            let book = Arc::clone(&book);
            tokio::spawn(async move {
                let Ok(mut connection) =
                    h2::server::Builder::new().data_frame_budget(FRAMES_BUDGET).handshake(stream).await
                else {
                    return;
                };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(answer(request, respond, Arc::clone(&book)));
                }
            });
        }
    });
    address
}

async fn answer(request: Request<RecvStream>, mut respond: h2::server::SendResponse<Bytes>, book: Arc<Book>) {
    let (parts, body) = request.into_parts();
    let Some(number) = parts.uri.path().strip_prefix("/case/") else {
        let _ = respond.send_response(Response::new(()), true);
        return;
    };
    let case = book.case(number.parse().unwrap());
    let shape = &case.response;
    let mut response = Response::builder();
    if shape.framing == Framing::Length {
        response = response.header("content-length", shape.length());
    }
    let (response, is_bare) = (response.body(()).unwrap(), is_bare(shape));
    let received = match case.order {
        Order::After => {
            let received = receive(body, 0).await;
            if let Ok(mut stream) = respond.send_response(response, is_bare)
                && !is_bare
            {
                let _ = send_all(&mut stream, shape).await;
            }
            received
        }
        Order::Before => {
            if let Ok(mut stream) = respond.send_response(response, is_bare)
                && !is_bare
            {
                let _ = send_all(&mut stream, shape).await;
            }
            receive(body, 0).await
        }
        Order::Meanwhile => match respond.send_response(response, false) {
            Ok(mut stream) => {
                let held = if shape.end == End::Whole { shape.pieces.len().saturating_sub(1) } else { 0 };
                let (received, sent) = tokio::join!(receive(body, 0), send(&mut stream, shape, 0..held));
                if sent.is_ok() && shape.end == End::Whole {
                    let _ = send(&mut stream, shape, held..shape.pieces.len()).await;
                    let _ = finish(&mut stream, shape);
                } else if sent.is_ok() {
                    let _ = send_all(&mut stream, shape).await;
                }
                received
            }
            Err(error) => Received::default().broke(error),
        },
    };
    book.backend(&case, received);
}

/// Whoever does not read for a while gets many small frames meanwhile, which `h2` takes for an attack after about a hundred.
const FRAMES_BUDGET: usize = 1 << 30;
