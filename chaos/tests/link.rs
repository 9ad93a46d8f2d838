//! Links over real sockets. What delay, loss and bandwidth do in detail is tested without I/O.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use archipelago_chaos::link::{Direction, LinkConfig, Shape, TcpLink, UdpLink};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

/// No packet arrives in this time: long enough to notice a leak, short enough to wait for.
const SILENCE: Duration = Duration::from_millis(100);

#[tokio::test]
async fn udp_answers_find_the_client_they_are_for() {
    let link = UdpLink::start(LinkConfig::transparent(udp_echo().await)).unwrap();
    let (one, two) = (client(&link).await, client(&link).await);
    for round in 0..20_u8 {
        one.send(&[1, round]).await.unwrap();
        two.send(&[2, round]).await.unwrap();
        assert_eq!(receive(&one).await, [1, round]);
        assert_eq!(receive(&two).await, [2, round]);
    }
    assert_eq!(link.clients(), 2);
    let stats = link.control().stats();
    assert_eq!((stats.forward.packets, stats.back.packets), (40, 40));
    assert_eq!((stats.forward.bytes, stats.back.bytes), (80, 80));
}

#[tokio::test]
async fn udp_delay_counts_in_each_direction() {
    let link = UdpLink::start(LinkConfig::transparent(udp_echo().await)).unwrap();
    let client = client(&link).await;
    link.set_delay(Duration::from_millis(25));
    let sent = Instant::now();
    client.send(b"x").await.unwrap();
    receive(&client).await;
    assert!(sent.elapsed() >= Duration::from_millis(50));
}

#[tokio::test]
async fn udp_cut_is_silent_and_heals() {
    let link = UdpLink::start(LinkConfig::transparent(udp_echo().await)).unwrap();
    let client = client(&link).await;
    client.send(b"before").await.unwrap();
    assert_eq!(receive(&client).await, b"before");
    link.cut();
    client.send(b"during").await.unwrap();
    assert!(timeout(SILENCE, receive(&client)).await.is_err());
    link.heal();
    client.send(b"after").await.unwrap();
    assert_eq!(receive(&client).await, b"after");
    assert_eq!(link.control().stats().forward.dropped_cut, 1);
}

#[tokio::test]
async fn udp_cut_takes_what_is_on_its_way() {
    let link = UdpLink::start(LinkConfig::transparent(udp_echo().await)).unwrap();
    let client = client(&link).await;
    link.set_delay(Duration::from_secs(3600));
    client.send(b"slow").await.unwrap();
    // The packet is on its way once the link knows the client; a second one cannot overtake it.
    while link.clients() == 0 {
        tokio::task::yield_now().await;
    }
    link.cut();
    link.set_delay(Duration::ZERO);
    client.send(b"cut").await.unwrap();
    while link.control().stats().forward.dropped_cut < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn udp_one_way_cut_still_carries_the_other() {
    let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let link = UdpLink::start(LinkConfig::transparent(far.local_addr().unwrap())).unwrap();
    let client = client(&link).await;
    client.send(b"hello").await.unwrap();
    let mut buffer = [0; 16];
    let (_, mapped) = far.recv_from(&mut buffer).await.unwrap();
    link.control().cut_one_way(Direction::Forward);
    client.send(b"lost").await.unwrap();
    assert!(timeout(SILENCE, far.recv_from(&mut buffer)).await.is_err());
    far.send_to(b"back", mapped).await.unwrap();
    assert_eq!(receive(&client).await, b"back");
}

#[tokio::test]
async fn udp_loss_of_everything_is_counted() {
    let mut config = LinkConfig::transparent(udp_echo().await);
    config.shape.loss = 1.0;
    let link = UdpLink::start(config).unwrap();
    let client = client(&link).await;
    for _ in 0..10 {
        client.send(b"x").await.unwrap();
    }
    while link.control().stats().forward.dropped_loss < 10 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    link.set_loss(0.0);
    client.send(b"through").await.unwrap();
    assert_eq!(receive(&client).await, b"through");
}

#[tokio::test]
async fn udp_rebind_changes_the_address_that_the_far_end_sees() {
    let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let link = UdpLink::start(LinkConfig::transparent(far.local_addr().unwrap())).unwrap();
    let client = client(&link).await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        client.send(b"x").await.unwrap();
        seen.push(far.recv_from(&mut [0; 16]).await.unwrap().1);
        link.rebind();
    }
    assert_ne!(seen[0], seen[1]);
    far.send_to(b"to the new one", seen[1]).await.unwrap();
}

#[tokio::test]
async fn udp_survives_a_far_end_that_is_away() {
    let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = far.local_addr().unwrap();
    drop(far);
    let link = UdpLink::start(LinkConfig::transparent(address)).unwrap();
    let client = client(&link).await;
    for _ in 0..5 {
        client.send(b"nobody").await.unwrap();
    }
    let far = UdpSocket::bind(address).await.unwrap();
    let mut buffer = [0; 16];
    let (length, _) = loop {
        client.send(b"somebody").await.unwrap();
        match timeout(SILENCE, far.recv_from(&mut buffer)).await {
            Ok(received) if received.as_ref().is_ok_and(|(length, _)| *length == 8) => {
                break received.unwrap();
            }
            _ => {}
        }
    };
    assert_eq!(&buffer[..length], b"somebody");
}

#[tokio::test]
async fn udp_carries_the_largest_datagram() {
    let link = UdpLink::start(LinkConfig::transparent(udp_echo().await)).unwrap();
    let client = client(&link).await;
    let large = vec![7; 65_507];
    client.send(&large).await.unwrap();
    assert_eq!(receive(&client).await, large);
}

#[tokio::test]
async fn tcp_carries_both_ways_with_half_close() {
    for delay in [Duration::ZERO, Duration::from_millis(10)] {
        let mut config = LinkConfig::transparent(tcp_counter().await);
        config.shape.delay = delay;
        let link = TcpLink::start(config).unwrap();
        let mut stream = TcpStream::connect(link.local_addr()).await.unwrap();
        let sent = vec![9; 3_000_000];
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "3000000");
        assert_eq!(link.control().stats().forward.bytes, 3_000_000);
    }
}

#[tokio::test]
async fn tcp_cut_holds_bytes_back_until_it_heals() {
    let link = TcpLink::start(LinkConfig::transparent(tcp_counter().await)).unwrap();
    let mut stream = TcpStream::connect(link.local_addr()).await.unwrap();
    link.cut();
    stream.write_all(b"12345").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    assert!(timeout(SILENCE, stream.read_to_string(&mut answer)).await.is_err());
    link.heal();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "5");
}

#[tokio::test]
async fn tcp_ends_in_a_reset_when_the_link_goes_away() {
    let link = TcpLink::start(LinkConfig::transparent(tcp_counter().await)).unwrap();
    let mut stream = TcpStream::connect(link.local_addr()).await.unwrap();
    stream.write_all(b"12345").await.unwrap();
    while link.control().stats().forward.bytes < 5 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(link);
    let error = stream.read(&mut [0; 16]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn tcp_a_reader_that_stops_stops_the_sender() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = LinkConfig::transparent(listener.local_addr().unwrap());
    config.shape = Shape { queue_bytes: 256 << 10, ..Shape::default() };
    let link = TcpLink::start(config).unwrap();
    let mut stream = TcpStream::connect(link.local_addr()).await.unwrap();
    let (_unread, _) = listener.accept().await.unwrap();
    // Buffers of four kernel sockets and the queue fill up; 64 MiB is beyond all of them together.
    let flood = vec![0; 64 << 20];
    let sent = timeout(Duration::from_secs(2), stream.write_all(&flood)).await;
    assert!(sent.is_err());
}

async fn client(link: &UdpLink) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(link.local_addr()).await.unwrap();
    socket
}

async fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer).await.unwrap();
    buffer.truncate(length);
    buffer
}

async fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..length], from).await;
        }
    });
    address
}

/// Reads each connection to its end, then says how many bytes came.
async fn tcp_counter() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut sink = tokio::io::sink();
                if let Ok(bytes) = tokio::io::copy(&mut stream, &mut sink).await {
                    let _ = stream.write_all(bytes.to_string().as_bytes()).await;
                }
            });
        }
    });
    address
}
