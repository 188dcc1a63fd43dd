//! Canonical bytes: row-major, element i of a row at bit `i * bits`, least significant first, unsigned with offset
//! `2^(bits-1)` (float8: the byte as it is), each row padded to 4 bytes with zero bits. For 2, 4 and 8 bits these are the bytes of
//! compressed-tensors' `weight_packed`.

use crate::error::{Error, Result, check_len};
use crate::qtype::QuantType;

/// Bytes of a row of `cols` codes.
pub const fn row_bytes(cols: usize, qtype: QuantType) -> usize {
    cols.div_ceil(32 / qtype.bits()) * 4
}

/// Signed codes `[rows, cols]` to canonical bytes `[rows, row_bytes]`.
///
/// # Errors
/// [`Error::Mismatch`] for lengths that do not fit and for a code that the type does not have.
pub fn pack_codes(q: &[i8], rows: usize, cols: usize, qtype: QuantType, out: &mut [u8]) -> Result<()> {
    let stride = row_bytes(cols, qtype);
    check_len("q", rows * cols, q.len())?;
    check_len("codes", rows * stride, out.len())?;
    only_integers(qtype)?;
    let (lo, hi) = (qtype.qmin(), qtype.qmax());
    if let Some(bad) = q.iter().find(|&&v| !(lo..=hi).contains(&i32::from(v))) {
        return Err(Error::mismatch("q", format!("codes in [{lo}, {hi}]"), bad));
    }
    if cols == 0 {
        return Ok(());
    }
    let mut row = vec![0u8; cols];
    for (q, out) in q.chunks_exact(cols).zip(out.chunks_exact_mut(stride)) {
        row.iter_mut().zip(q).for_each(|(u, &q)| *u = (i32::from(q) + qtype.offset()) as u8);
        pack_row(&row, qtype, out);
    }
    Ok(())
}

/// Canonical bytes to signed codes; the exact inverse of [`pack_codes`].
///
/// # Errors
/// [`Error::Mismatch`] for lengths that do not fit.
pub fn unpack_codes(codes: &[u8], rows: usize, cols: usize, qtype: QuantType, q: &mut [i8]) -> Result<()> {
    let stride = row_bytes(cols, qtype);
    check_len("codes", rows * stride, codes.len())?;
    check_len("q", rows * cols, q.len())?;
    only_integers(qtype)?;
    if cols == 0 {
        return Ok(());
    }
    let mut row = vec![0u8; cols];
    for (codes, q) in codes.chunks_exact(stride).zip(q.chunks_exact_mut(cols)) {
        unpack_row(codes, qtype, &mut row);
        q.iter_mut().zip(&row).for_each(|(q, &u)| *q = (i32::from(u) - qtype.offset()) as i8);
    }
    Ok(())
}

fn only_integers(qtype: QuantType) -> Result<()> {
    if qtype.is_float() {
        return Err(Error::mismatch("kind", "a type of integers", format!("{qtype:?}, whose codes are float8")));
    }
    Ok(())
}

/// Unsigned codes of one row into its canonical bytes, the padding zeroed.
pub(crate) fn pack_row(codes: &[u8], qtype: QuantType, out: &mut [u8]) {
    match qtype {
        QuantType::Int8 | QuantType::E4M3 | QuantType::E5M2 => {
            out[..codes.len()].copy_from_slice(codes);
            out[codes.len()..].fill(0);
        }
        QuantType::Int4 => pack_small::<4, 2>(codes, out),
        QuantType::Int2 => pack_small::<2, 4>(codes, out),
    }
}

fn pack_small<const BITS: usize, const PER: usize>(codes: &[u8], out: &mut [u8]) {
    let (whole, rest) = codes.as_chunks::<PER>();
    let join = |codes: &[u8]| codes.iter().enumerate().fold(0, |byte, (j, u)| byte | u << (j * BITS));
    out.iter_mut().zip(whole).for_each(|(byte, codes)| *byte = join(codes));
    let tail = &mut out[whole.len()..];
    tail.fill(0);
    if !rest.is_empty() {
        tail[0] = join(rest);
    }
}

/// Canonical bytes of one row into `out.len()` unsigned codes.
pub(crate) fn unpack_row(bytes: &[u8], qtype: QuantType, out: &mut [u8]) {
    match qtype {
        QuantType::Int8 | QuantType::E4M3 | QuantType::E5M2 => out.copy_from_slice(&bytes[..out.len()]),
        QuantType::Int4 => unpack_small::<4>(bytes, out),
        QuantType::Int2 => unpack_small::<2>(bytes, out),
    }
}

fn unpack_small<const BITS: usize>(bytes: &[u8], out: &mut [u8]) {
    let mask = (1u8 << BITS) - 1;
    for (chunk, &byte) in out.chunks_mut(8 / BITS).zip(bytes) {
        for (j, u) in chunk.iter_mut().enumerate() {
            *u = byte >> (j * BITS) & mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_documented_bytes() {
        let mut out = [0u8; 4];
        pack_codes(&[-8, 7, 0], 1, 3, QuantType::Int4, &mut out).unwrap();
        assert_eq!(out, [0xf0, 0x08, 0, 0]);
        pack_codes(&[-2, -1, 0, 1, 1], 1, 5, QuantType::Int2, &mut out).unwrap();
        assert_eq!(out, [0b11_10_01_00, 0b11, 0, 0]);
    }

    #[test]
    fn a_code_out_of_range_is_named() {
        let err = pack_codes(&[8], 1, 1, QuantType::Int4, &mut [0; 4]).unwrap_err();
        assert_eq!(err.to_string(), "q: expected codes in [-8, 7], got 8");
    }

    proptest! {
        #[test]
        fn unpack_inverts_pack(rows in 0usize..4, cols in 0usize..40, bits in 0usize..3, seed: u64) {
            let qtype = QuantType::INTEGERS[bits];
            let q: Vec<i8> = (0..rows * cols)
                .map(|i| (seed.rotate_left(i as u32 * 7) as i32 & (2 * qtype.offset() - 1)) as i8)
                .map(|u| (i32::from(u as u8) - qtype.offset()) as i8)
                .collect();
            let mut bytes = vec![0; rows * row_bytes(cols, qtype)];
            pack_codes(&q, rows, cols, qtype, &mut bytes).unwrap();
            let mut back = vec![0; q.len()];
            unpack_codes(&bytes, rows, cols, qtype, &mut back).unwrap();
            prop_assert_eq!(back, q);
        }
    }
}
