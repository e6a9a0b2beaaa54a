//! Content codings as clients and providers write them, piece by piece: each piece can be decoded
//! as soon as it has come. Zstandard and Brotli are written without compression, which every
//! decoder reads.

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

/// A content coding (RFC 9110 section 8.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Zstd,
    Brotli,
}

/// The largest block of Zstandard, in bytes.
const BLOCK: usize = 128 << 10;

impl Coding {
    /// The name in `Content-Encoding`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Brotli => "br",
        }
    }

    /// The pieces of a coded body, one for each of these.
    pub(super) fn pieces(self, plain: &[&[u8]]) -> Vec<Vec<u8>> {
        match self {
            Self::Gzip => gzip(plain),
            Self::Zstd => zstd(plain),
            Self::Brotli => brotli(plain),
        }
    }

    /// A whole coded body.
    pub(super) fn whole(self, plain: &[u8]) -> Vec<u8> {
        self.pieces(&[plain]).concat()
    }

    /// A small body that becomes `before`, then `bytes` bytes of the letter x, then `after`.
    pub(super) fn bomb(self, before: &[u8], bytes: usize, after: &[u8]) -> Vec<u8> {
        match self {
            Self::Zstd => {
                let mut coded = zstd_head(before.len() + bytes + after.len());
                coded.extend(zstd_block(0, before.len(), before, false));
                let mut left = bytes;
                while left > 0 {
                    let length = left.min(BLOCK);
                    coded.extend(zstd_block(1, length, b"x", false));
                    left -= length;
                }
                coded.extend(zstd_block(0, after.len(), after, true));
                coded
            }
            _ => self.whole(&[before, &vec![b'x'; bytes], after].concat()),
        }
    }
}

/// What a part of a body in gzip decodes to so far.
pub(super) fn gunzipped(coded: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut decoder = GzDecoder::new(coded);
    let mut buffer = [0; 4_096];
    while let Ok(read @ 1..) = decoder.read(&mut buffer) {
        plain.extend_from_slice(&buffer[..read]);
    }
    plain
}

fn gzip(plain: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let mut pieces = Vec::new();
    for piece in plain {
        // writing into memory does not fail
        let _ = encoder.write_all(piece).and_then(|()| encoder.flush());
        pieces.push(std::mem::take(encoder.get_mut()));
    }
    let end = encoder.finish().unwrap_or_default();
    append(pieces, end)
}

fn zstd(plain: &[&[u8]]) -> Vec<Vec<u8>> {
    let length = plain.iter().map(|piece| piece.len()).sum();
    let mut pieces = Vec::new();
    for piece in plain {
        let blocks = piece.chunks(BLOCK);
        pieces.push(
            blocks
                .flat_map(|block| zstd_block(0, block.len(), block, false))
                .collect(),
        );
    }
    if let Some(first) = pieces.first_mut() {
        *first = [zstd_head(length), std::mem::take(first)].concat();
    }
    append(pieces, zstd_block(0, 0, b"", true))
}

/// The magic number, and a header with the length of the content (RFC 8878 section 3.1.1).
fn zstd_head(length: usize) -> Vec<u8> {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    let mut head = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000];
    head.extend(length.to_le_bytes());
    head
}

/// A block of this type (0 raw, 1 one byte repeated) that decodes to `length` bytes.
fn zstd_block(kind: u32, length: usize, content: &[u8], last: bool) -> Vec<u8> {
    let head = u32::from(last) | kind << 1 | u32::try_from(length).unwrap_or_default() << 3;
    [&head.to_le_bytes()[..3], content].concat()
}

/// Uncompressed meta-blocks (RFC 7932 section 9.2), each of which ends at a whole byte.
fn brotli(plain: &[&[u8]]) -> Vec<Vec<u8>> {
    const MOST: usize = 1 << 16;
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    for piece in plain {
        let mut coded = Vec::new();
        for block in piece.chunks(MOST) {
            let length = u32::try_from(block.len() - 1).unwrap_or_default();
            // the stream begins with one bit for the size of the window
            let first = pieces.is_empty() && coded.is_empty();
            let head = (1 << 19 | length << 3) << u32::from(first);
            coded.extend_from_slice(&head.to_le_bytes()[..3]);
            coded.extend_from_slice(block);
        }
        pieces.push(coded);
    }
    append(pieces, vec![0b11])
}

/// The pieces, with these bytes after the last one.
fn append(mut pieces: Vec<Vec<u8>>, end: Vec<u8>) -> Vec<Vec<u8>> {
    match pieces.last_mut() {
        Some(last) => last.extend(end),
        None => pieces.push(end),
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_documents() {
        // checked with the programs zstd and brotli
        assert_eq!(
            Coding::Zstd.whole(b"hi"),
            [
                0x28, 0xb5, 0x2f, 0xfd, 0xa0, 2, 0, 0, 0, 0x10, 0, 0, b'h', b'i', 1, 0, 0
            ]
        );
        assert_eq!(
            Coding::Brotli.pieces(&[b"hi", b"you"]),
            [
                vec![0x10, 0x00, 0x10, b'h', b'i'],
                vec![0x10, 0x00, 0x08, b'y', b'o', b'u', 3]
            ]
        );
        assert_eq!(
            Coding::Zstd.bomb(b"a", 3, b"b"),
            [
                0x28, 0xb5, 0x2f, 0xfd, 0xa0, 5, 0, 0, 0, 8, 0, 0, b'a', 0x1a, 0, 0, b'x', 9, 0, 0,
                b'b'
            ]
        );
    }

    #[test]
    fn each_piece_of_gzip_can_be_read_when_it_has_come() {
        let pieces = Coding::Gzip.pieces(&[b"data: a\n\n", b"data: b\n\n"]);
        assert_eq!(gunzipped(&pieces[0]), b"data: a\n\n");
        assert_eq!(gunzipped(&pieces.concat()), b"data: a\n\ndata: b\n\n");
        assert!(Coding::Gzip.bomb(b"a", 1 << 20, b"b").len() < 8 << 10);
    }
}
