//! One 32-bit word of canonical bytes against one of a panel's block: the same codes in another order.

use crate::qtype::QuantType;

/// A canonical word (code i at bits `i * bits`) to a block's word: the code of step `4 t + i` at byte i, bits `t * bits`.
pub(super) fn to_block(word: u32, qtype: QuantType) -> u32 {
    match qtype {
        QuantType::Int8 | QuantType::E4M3 | QuantType::E5M2 => word,
        QuantType::Int4 => spread(word & 0xffff) | spread(word >> 16) << 4,
        QuantType::Int2 => transpose(word),
    }
}

/// The inverse of [`to_block`].
pub(super) fn from_block(word: u32, qtype: QuantType) -> u32 {
    match qtype {
        QuantType::Int8 | QuantType::E4M3 | QuantType::E5M2 => word,
        QuantType::Int4 => gather(word) | gather(word >> 4) << 16,
        QuantType::Int2 => transpose(word),
    }
}

/// Four nibbles side by side to the low halves of four bytes.
fn spread(v: u32) -> u32 {
    let v = (v | v << 8) & 0x00ff_00ff;
    (v | v << 4) & 0x0f0f_0f0f
}

/// The inverse of [`spread`].
fn gather(v: u32) -> u32 {
    let v = v & 0x0f0f_0f0f;
    let v = (v | v >> 4) & 0x00ff_00ff;
    (v | v >> 8) & 0xffff
}

/// The 4 x 4 matrix of 2-bit fields, transposed: fields off the diagonal change places with their mirror.
fn transpose(v: u32) -> u32 {
    let swap = |v: u32, mask: u32, by: u32| {
        let d = (v ^ v >> by) & mask;
        v ^ d ^ d << by
    };
    // field (r, c) lies at bit 8 r + 2 c: first exchange within 2 x 2 blocks, then the blocks
    let v = swap(v, 0x000c_000c | 0x00c0_00c0, 6);
    swap(v, 0x0000_f0f0, 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_order() {
        for (qtype, steps) in [(QuantType::Int4, 8), (QuantType::Int2, 16)] {
            for step in 0..steps {
                // only this step's code is set
                let word = 1 << (step * qtype.bits());
                let block = 1 << (step % 4 * 8 + step / 4 * qtype.bits());
                assert_eq!(to_block(word, qtype), block, "{qtype:?} step {step}");
                assert_eq!(from_block(block, qtype), word, "{qtype:?} step {step}");
            }
        }
    }
}
