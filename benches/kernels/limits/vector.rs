//! Arithmetic in registers: a loop over accumulators that do not wait for each other, in assembly so that no compiler
//! spills them. Every lane's sum is checked against the product it must be.

use super::Probe;
use std::arch::{asm, is_x86_feature_detected};

/// Bytes of the widest vector.
const VECTOR: usize = 64;
/// Turns of a loop: some 5 to 20 ms, and no float lane's sum beyond 2^24.
const ROUNDS: usize = 1 << 20;
const MOST: usize = 24;

/// Two operands and a vector of ones.
#[repr(C, align(64))]
struct Operands {
    a: [u8; VECTOR],
    b: [u8; VECTOR],
    ones: [i16; VECTOR / 2],
}

/// What every accumulator holds at the end.
#[repr(C, align(64))]
struct Sums([[u8; VECTOR]; MOST]);

/// Elements of the operands, and how often a turn adds their product to a lane.
#[derive(Clone, Copy)]
enum Elements {
    /// Unsigned by signed bytes, four to a 32-bit lane.
    Bytes(usize),
    /// 16 bits, two to a lane.
    Words,
    Floats,
    /// bfloat16, two to a lane.
    Brains,
}

struct Loop {
    key: &'static str,
    what: &'static str,
    present: fn() -> bool,
    elements: Elements,
    accumulators: usize,
    /// Bytes of a vector.
    width: usize,
    run: unsafe fn(usize, &Operands, &mut Sums),
}

/// A loop with one step for each accumulator `\i`; a, b, ones lie in vectors 15, 14 and 13, and 10 to 12 are free.
macro_rules! accumulate {
    ($name:ident, $features:literal, $vector:literal, $list:literal, $move:literal, $zero:literal, $step:literal) => {
        /// # Safety
        /// The CPU has these features.
        #[target_feature(enable = $features)]
        unsafe fn $name(rounds: usize, operands: &Operands, sums: &mut Sums) {
            // SAFETY: it reads three vectors at rsi and writes as many as there are accumulators at rdi, which the types
            // hold; all vector registers count as clobbered.
            unsafe {
                asm!(
                    concat!($move, " ", $vector, "15, [rsi]"),
                    concat!($move, " ", $vector, "14, [rsi + 64]"),
                    concat!($move, " ", $vector, "13, [rsi + 128]"),
                    concat!(".irp i, ", $list),
                    concat!($zero, " ", $vector, "\\i, ", $vector, "\\i, ", $vector, "\\i"),
                    ".endr",
                    ".p2align 6",
                    "2:",
                    concat!(".irp i, ", $list),
                    $step,
                    ".endr",
                    "dec rcx",
                    "jnz 2b",
                    ".set .Lat, 0",
                    concat!(".irp i, ", $list),
                    concat!($move, " [rdi + .Lat], ", $vector, "\\i"),
                    ".set .Lat, .Lat + 64",
                    ".endr",
                    "vzeroupper",
                    inout("rcx") rounds => _,
                    in("rsi") operands,
                    in("rdi") sums,
                    clobber_abi("sysv64"),
                    options(nostack),
                );
            }
        }
    };
}

accumulate!(
    vpdpbusd_zmm,
    "avx512f,avx512vnni",
    "zmm",
    "0,1,2,3,4,5,6,7,8,9,10,11,16,17,18,19,20,21,22,23,24,25,26,27",
    "vmovdqu64",
    "vpxord",
    "vpdpbusd zmm\\i, zmm15, zmm14"
);
accumulate!(
    vpdpbusd_ymm,
    "avxvnni",
    "ymm",
    "0,1,2,3,4,5,6,7,8,9,10,11",
    "vmovdqu",
    "vpxor",
    "{{vex}} vpdpbusd ymm\\i, ymm15, ymm14"
);
accumulate!(
    vpmaddubsw_ymm,
    "avx2",
    "ymm",
    "0,1,2,3,4,5,6,7,8,9",
    "vmovdqu",
    "vpxor",
    "vpmaddubsw ymm12, ymm15, ymm14\nvpmaddwd ymm12, ymm12, ymm13\nvpaddd ymm\\i, ymm\\i, ymm12"
);
accumulate!(
    vpmaddubsw_twice_ymm,
    "avx2",
    "ymm",
    "0,1,2,3,4,5,6,7,8,9",
    "vmovdqu",
    "vpxor",
    "vpmaddubsw ymm12, ymm15, ymm14\nvpmaddubsw ymm11, ymm15, ymm14\nvpaddw ymm12, ymm12, ymm11\n\
     vpmaddwd ymm12, ymm12, ymm13\nvpaddd ymm\\i, ymm\\i, ymm12"
);
accumulate!(
    vpmaddwd_ymm,
    "avx2",
    "ymm",
    "0,1,2,3,4,5,6,7,8,9",
    "vmovdqu",
    "vpxor",
    "vpmaddwd ymm12, ymm15, ymm14\nvpaddd ymm\\i, ymm\\i, ymm12"
);
accumulate!(
    fma_zmm,
    "avx512f",
    "zmm",
    "0,1,2,3,4,5,6,7,8,9,10,11,16,17,18,19,20,21,22,23,24,25,26,27",
    "vmovdqu64",
    "vpxord",
    "vfmadd231ps zmm\\i, zmm15, zmm14"
);
accumulate!(
    fma_ymm,
    "avx2,fma",
    "ymm",
    "0,1,2,3,4,5,6,7,8,9,10,11",
    "vmovdqu",
    "vpxor",
    "vfmadd231ps ymm\\i, ymm15, ymm14"
);

accumulate!(
    dpbf16_zmm,
    "avx512f,avx512bf16",
    "zmm",
    "0,1,2,3,4,5,6,7,8,9,10,11,16,17,18,19,20,21,22,23,24,25,26,27",
    "vmovdqu64",
    "vpxord",
    "vdpbf16ps zmm\\i, zmm15, zmm14"
);

fn avx2() -> bool {
    is_x86_feature_detected!("avx2")
}

#[rustfmt::skip] // a table
const LOOPS: &[Loop] = &[
    Loop { key: "vnni_gops", what: "GOPS: vpdpbusd zmm", present: || is_x86_feature_detected!("avx512vnni"),
        elements: Elements::Bytes(1), accumulators: 24, width: 64, run: vpdpbusd_zmm },
    Loop { key: "vnni_ymm_gops", what: "GOPS: vpdpbusd ymm (AVX-VNNI)", present: || is_x86_feature_detected!("avxvnni"),
        elements: Elements::Bytes(1), accumulators: 12, width: 32, run: vpdpbusd_ymm },
    Loop { key: "maddubs_gops", what: "GOPS: vpmaddubsw, vpmaddwd, vpaddd ymm", present: avx2,
        elements: Elements::Bytes(1), accumulators: 10, width: 32, run: vpmaddubsw_ymm },
    Loop { key: "maddubs_twice_gops", what: "GOPS: 2 vpmaddubsw to a vpmaddwd ymm", present: avx2,
        elements: Elements::Bytes(2), accumulators: 10, width: 32, run: vpmaddubsw_twice_ymm },
    Loop { key: "maddwd_gops", what: "GOPS: vpmaddwd, vpaddd ymm", present: avx2,
        elements: Elements::Words, accumulators: 10, width: 32, run: vpmaddwd_ymm },
    Loop { key: "fma_zmm_gflops", what: "GFLOPS: vfmadd231ps zmm", present: || is_x86_feature_detected!("avx512f"),
        elements: Elements::Floats, accumulators: 24, width: 64, run: fma_zmm },
    Loop { key: "fma_ymm_gflops", what: "GFLOPS: vfmadd231ps ymm", present: || avx2() && is_x86_feature_detected!("fma"),
        elements: Elements::Floats, accumulators: 12, width: 32, run: fma_ymm },
    Loop { key: "bf16_gflops", what: "GFLOPS: vdpbf16ps zmm", present: || is_x86_feature_detected!("avx512bf16"),
        elements: Elements::Brains, accumulators: 24, width: 64, run: dpbf16_zmm },
];

/// Every loop that this CPU has the instructions for.
pub fn probes() -> impl Iterator<Item = Probe> {
    LOOPS.iter().filter(|it| (it.present)()).map(|it| {
        let operands = operands(it.elements);
        let per_lane = match it.elements {
            Elements::Bytes(repeats) => 4 * repeats,
            Elements::Words | Elements::Brains => 2,
            Elements::Floats => 1,
        };
        // a multiplication and an addition each
        let operations = 2 * ROUNDS * it.accumulators * it.width / 4 * per_lane;
        let work = move |_, _| {
            let mut sums = Sums([[0; VECTOR]; MOST]);
            // SAFETY: `present` has seen the features.
            unsafe { (it.run)(ROUNDS, &operands, &mut sums) };
            check(it, &operands, &sums);
        };
        Probe {
            key: it.key,
            what: it.what,
            amount: Box::new(move |threads| (operations * threads) as f64),
            work: Box::new(work),
        }
    })
}

/// Numbers that differ from lane to lane and overflow nothing on the way: bytes of 0..16 by -127..=127, or 1.0 and 2.0
/// by 1.0, in bfloat16 both in each lane.
fn operands(elements: Elements) -> Operands {
    let (mut a, mut b) = ([0; VECTOR], [0; VECTOR]);
    for i in 0..VECTOR {
        (a[i], b[i]) = ((i * 7 % 16) as u8, ((i * 29 % 255) as i32 - 127) as u8);
    }
    if let Elements::Brains = elements {
        let upper = |v: f32| ((v.to_bits() >> 16) as u16).to_le_bytes();
        for (i, (a, b)) in a.as_chunks_mut().0.iter_mut().zip(b.as_chunks_mut().0).enumerate() {
            (*a, *b) = (upper(1.0 + (i % 2) as f32), upper(1.0));
        }
    }
    if let Elements::Floats = elements {
        for (i, (a, b)) in a.as_chunks_mut().0.iter_mut().zip(b.as_chunks_mut().0).enumerate() {
            (*a, *b) = ((1.0 + (i % 2) as f32).to_le_bytes(), 1f32.to_le_bytes());
        }
    }
    Operands { a, b, ones: [1; VECTOR / 2] }
}

fn check(it: &Loop, operands: &Operands, sums: &Sums) {
    let lanes = operands.a.as_chunks::<4>().0.iter().zip(operands.b.as_chunks::<4>().0);
    for (lane, (a, b)) in lanes.enumerate().take(it.width / 4) {
        let words = |x: &[u8; 4]| [i16::from_le_bytes([x[0], x[1]]), i16::from_le_bytes([x[2], x[3]])].map(i64::from);
        let product = match it.elements {
            Elements::Bytes(repeats) => {
                repeats as i64 * a.iter().zip(b).map(|(a, b)| i64::from(*a) * i64::from(*b as i8)).sum::<i64>()
            }
            Elements::Words => words(a).iter().zip(words(b)).map(|(a, b)| a * b).sum(),
            Elements::Floats => (f32::from_le_bytes(*a) * f32::from_le_bytes(*b)) as i64,
            Elements::Brains => 3, // 1.0 and 2.0 by 1.0
        };
        let expected = match it.elements {
            Elements::Floats | Elements::Brains => ((ROUNDS as i64 * product) as f32).to_le_bytes(),
            _ => ((ROUNDS as i64 * product) as i32).to_le_bytes(), // modulo 2^32
        };
        for sum in &sums.0[..it.accumulators] {
            assert!(sum[lane * 4..][..4] == expected, "{}: lane {lane} of {sum:?}", it.what);
        }
    }
}
