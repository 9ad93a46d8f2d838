//! Bodies: what comes out is what was sent, and an end is never made up.

use archipelago_http::Known;
use archipelago_http::h1::{BadBody, BodyDecoder, Framing, Piece, chunk_head, last_chunk};
use bytes::{BufMut as _, BytesMut};

/// Data, trailers, whether it ended, what is left.
type Decoded = (Vec<u8>, Option<String>, bool, Vec<u8>);

/// What a decoder makes of `pieces`, given one after the other.
fn decode(framing: Framing, pieces: &[&[u8]]) -> Result<Decoded, BadBody> {
    let mut decoder = BodyDecoder::new(framing);
    let (mut buf, mut data, mut trailers) = (BytesMut::new(), Vec::new(), None);
    for piece in pieces {
        buf.put_slice(piece);
        loop {
            match decoder.decode(&mut buf)? {
                Piece::More => break,
                Piece::Data(bytes) => data.put_slice(&bytes),
                Piece::Trailers(fields) => trailers = Some(format!("{fields:?}")),
                Piece::End => {
                    assert!(decoder.is_done());
                    break;
                }
            }
        }
    }
    Ok((data, trailers, decoder.end_of_input().is_ok(), buf.to_vec()))
}

#[test]
fn every_framing_ends_where_it_says() {
    let all = |framing, text: &str| decode(framing, &[text.as_bytes()]).unwrap();
    assert_eq!(all(Framing::Empty, "next"), (b"".to_vec(), None, true, b"next".to_vec()));
    assert_eq!(all(Framing::Length(0), "next"), (b"".to_vec(), None, true, b"next".to_vec()));
    assert_eq!(all(Framing::Length(3), "abcnext"), (b"abc".to_vec(), None, true, b"next".to_vec()));
    assert_eq!(all(Framing::Length(3), "ab"), (b"ab".to_vec(), None, false, b"".to_vec()));
    assert_eq!(all(Framing::UntilClose, "abc"), (b"abc".to_vec(), None, true, b"".to_vec()));
    let chunked = "3\r\nabc\r\n00A ; x=\"y\"\r\n0123456789\r\n0;z\r\n\r\nnext";
    assert_eq!(all(Framing::Chunked, chunked), (b"abc0123456789".to_vec(), None, true, b"next".to_vec()));
    for cut in 1..chunked.len() - 4 {
        let (start, rest) = chunked.as_bytes().split_at(cut);
        assert_eq!(decode(Framing::Chunked, &[start]).map(|(.., ended, _)| ended), Ok(false), "{cut}");
        assert_eq!(decode(Framing::Chunked, &[start, rest]).unwrap(), all(Framing::Chunked, chunked), "{cut}");
    }
}

#[test]
fn chunks_that_are_none() {
    for (text, bad) in [
        ("5\nhello", BadBody::ChunkLine),
        ("5;a\nhello", BadBody::ChunkLine),
        ("5\r\r\n", BadBody::ChunkLine),
        ("5\rhello", BadBody::ChunkLine),
        ("5;a\0\r\n", BadBody::ChunkLine),
        ("G\r\n", BadBody::ChunkSize),
        ("-1\r\n", BadBody::ChunkSize),
        ("+1\r\n", BadBody::ChunkSize),
        ("0x5\r\n", BadBody::ChunkSize),
        (" 5\r\n", BadBody::ChunkSize),
        ("5 5\r\n", BadBody::ChunkSize),
        ("\r\n", BadBody::ChunkSize),
        (";a\r\n", BadBody::ChunkSize),
        ("0000000000000005\r\n", BadBody::ChunkSize),
        ("ffffffffffffffff", BadBody::ChunkSize),
        ("5\r\nhelloX\r\n", BadBody::ChunkEnd),
        ("5\r\nhello\n", BadBody::ChunkEnd),
        ("0\r\nx\r\n", BadBody::Trailer),
        ("0\r\nx : y\r\n", BadBody::Trailer),
        ("0\r\nx: y\n", BadBody::Trailer),
        ("0\r\nx: y\r\n z\r\n", BadBody::Trailer),
        ("0\r\n\n", BadBody::Trailer),
    ] {
        assert_eq!(decode(Framing::Chunked, &[text.as_bytes()]).unwrap_err(), bad, "{text:?}");
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(decode(Framing::Chunked, &bytes).unwrap_err(), bad, "{text:?}");
    }
    let long = format!("5;{}", "x".repeat(1024));
    assert_eq!(decode(Framing::Chunked, &[long.as_bytes()]).unwrap_err(), BadBody::ChunkExtensions);
    let many = format!("1;{}\r\nx\r\n", "x".repeat(900)).repeat(20);
    assert_eq!(decode(Framing::Chunked, &[many.as_bytes()]).unwrap_err(), BadBody::ChunkExtensions);
    let large = format!("0\r\n{}", "a: b\r\n".repeat(257));
    assert_eq!(decode(Framing::Chunked, &[large.as_bytes()]).unwrap_err(), BadBody::TrailersTooLarge);
    let endless = format!("0\r\na: {}", "b".repeat(64 * 1024));
    assert_eq!(decode(Framing::Chunked, &[endless.as_bytes()]).unwrap_err(), BadBody::TrailersTooLarge);
}

#[test]
fn trailers_say_nothing_about_where_and_whence() {
    let text = "0\r\nX-Sum: 1\r\nContent-Length: 5\r\nhost: b\r\nmesh-source: x\r\nmesh_hop: 1\r\nTransfer-Encoding: chunked\r\ngrpc-status: 0\r\n\r\nnext";
    let mut buf = BytesMut::from(text);
    let mut decoder = BodyDecoder::new(Framing::Chunked);
    let Ok(Piece::Trailers(trailers)) = decoder.decode(&mut buf) else { panic!("no trailers") };
    assert_eq!(trailers.find("x-sum"), Some(b"1".as_slice()));
    assert_eq!(trailers.get(Known::GrpcStatus), Some(b"0".as_slice()));
    assert_eq!(trailers.len(), 2);
    assert_eq!(decoder.decode(&mut buf), Ok(Piece::End));
    assert_eq!(buf, "next");
    let mut out = Vec::new();
    last_chunk(Some(&trailers), &mut out);
    assert_eq!(out, b"0\r\nX-Sum: 1\r\ngrpc-status: 0\r\n\r\n");
}

#[test]
fn bytes_that_were_sent_one_by_one_come_out_together() {
    let text =
        format!("{}200\r\n{}\r\n201\r\n{}\r\n0\r\n\r\n", "1;x\r\na\r\n".repeat(1000), "b".repeat(512), "c".repeat(513));
    let mut buf = BytesMut::from(text.as_str());
    let mut decoder = BodyDecoder::new(Framing::Chunked);
    let mut pieces = Vec::new();
    while let Piece::Data(data) = decoder.decode(&mut buf).unwrap() {
        pieces.push(data.len());
    }
    assert_eq!(pieces, [1000 + 512, 513]);
    assert!(decoder.is_done());
    // What is wrong among them is found all the same, after what was right.
    let mut buf = BytesMut::from("1\r\na\r\n1\r\nb\r\nx\r\n");
    let mut decoder = BodyDecoder::new(Framing::Chunked);
    assert_eq!(decoder.decode(&mut buf), Ok(Piece::Data("ab".into())));
    assert_eq!(decoder.decode(&mut buf), Err(BadBody::ChunkSize));
}

#[test]
fn chunk_heads() {
    for (length, text) in
        [(1, "1\r\n"), (16, "10\r\n"), (0xabc_def, "abcdef\r\n"), (usize::MAX, "ffffffffffffffff\r\n")]
    {
        assert_eq!(chunk_head(length).as_ref(), text.as_bytes());
    }
}
