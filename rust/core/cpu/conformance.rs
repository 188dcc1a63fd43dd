//! Every kernel of every instruction set against the portable one: `==` for integers and elementwise loops, within
//! rounding for float sums.

use super::lanes::{Encoding, Groups, Levels, PanelZeros, Proximal, Steps, TRIED, Tile};
use super::*;
use crate::buffer::Shared;

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|i| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // the ends of the range often: overflow hides there
            match i % 5 {
                0 => 0x80,
                1 => 0xff,
                _ => state as u8,
            }
        })
        .collect()
}

fn floats(len: usize, seed: u64) -> Vec<f32> {
    bytes(len, seed).iter().zip(bytes(len, seed + 9)).map(|(a, b)| f32::from(*a as i8) + f32::from(b) / 256.0).collect()
}

/// int8 quads as the kernel reads them.
fn arrange(a: &[u8], wide: bool) -> Vec<u8> {
    if !wide {
        return a.to_vec();
    }
    let widen = |b: u8| i16::from(b as i8).to_le_bytes();
    a.as_chunks::<4>().0.iter().flat_map(|q| [q[0], q[2], q[1], q[3]].map(widen).concat()).collect()
}

fn close(got: &[f32], want: &[f32], size: f32) -> bool {
    got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 1e-5 * size)
}

#[test]
fn integer_tiles_equal_the_portable_one() {
    for isa in detected() {
        for weight in QuantType::INTEGERS {
            let kernel = isa.kernel(weight);
            let spec = portable::ISA.kernel(weight);
            for (rows, cols, blocks) in shapes(kernel.mr) {
                let b = bytes(blocks * block_bytes(cols), 3 + blocks as u64);
                let a = bytes(blocks * weight.per_byte() * rows * 4, 17 + rows as u64);
                let start: Vec<i32> = (0..rows * cols).map(|i| i32::MAX - i as i32).collect();
                for accumulate in [false, true] {
                    let mut want = start.clone();
                    for r in 0..rows {
                        // the specification takes fewer rows at once
                        let row: Vec<u8> = a.chunks(rows * 4).flat_map(|q| &q[r * 4..][..4]).copied().collect();
                        spec.tile(&row, 1, &b, cols, &mut want[r * cols..][..cols], accumulate);
                    }
                    let mut got = start.clone();
                    kernel.tile(&arrange(&a, kernel.wide), rows, &b, cols, &mut got, accumulate);
                    assert_eq!(got, want, "{} rows {rows} cols {cols} blocks {blocks}", kernel.name);

                    let mut codes = vec![0; b.len() * weight.per_byte()];
                    kernel.unpack(&b, cols, &mut codes);
                    let mut spec_codes = codes.clone();
                    spec.unpack(&b, cols, &mut spec_codes);
                    assert_eq!(codes, spec_codes, "{} unpack cols {cols}", kernel.name);
                    let mut got = start.clone();
                    kernel.tile_unpacked(&arrange(&a, kernel.wide), rows, &codes, cols, &mut got, accumulate);
                    assert_eq!(got, want, "{} unpacked rows {rows} cols {cols} blocks {blocks}", kernel.name);
                }
            }
        }
    }
}

fn shapes(mr: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let blocks = [0, 1, 2, 3, 7, 8, 9, 33];
    (1..=mr).flat_map(move |r| [16, 32, 48, 64].into_iter().flat_map(move |c| blocks.map(|b| (r, c, b))))
}

#[test]
fn float_kernels_agree_with_the_portable_ones() {
    for isa in detected() {
        for (rows, cols, blocks) in shapes(isa.float_mr) {
            let stride = blocks + 3;
            let (a, b) = (floats(stride * rows, 5), floats(blocks * cols, 6));
            let (mut got, mut want) = (vec![1f32; rows * cols], vec![1f32; rows * cols]);
            isa.float_tile(&a, stride, rows, &b, cols, &mut got);
            for (a, want) in a.chunks(stride).zip(want.chunks_mut(cols)) {
                for (x, b) in a.iter().zip(b.chunks(cols)) {
                    want.iter_mut().zip(b).for_each(|(w, y)| *w += x * y);
                }
            }
            assert!(close(&got, &want, 128.0 * 128.0 * (blocks as f32 + 1.0)), "{} {rows} {cols} {blocks}", isa.name);
        }
        for weight in QuantType::INTEGERS {
            for (rows, cols, blocks) in shapes(MAX_DOT_ROWS) {
                let b = bytes(blocks * block_bytes(cols), 8);
                let a = floats(blocks * block_steps(weight) * rows, 9);
                let (z, scales) = (floats(cols, 10), vec![0.5; cols]);
                for zeros in [None, Some(&z[..])] {
                    let (mut got, mut want) = (vec![2f32; rows * cols], vec![2f32; rows * cols]);
                    isa.kernel(weight).dot(&a, rows, &b, cols, &scales, zeros, &mut got);
                    portable::ISA.kernel(weight).dot(&a, rows, &b, cols, &scales, zeros, &mut want);
                    let size = 128.0 * 256.0 * (a.len() as f32 + 1.0);
                    assert!(close(&got, &want, size), "{} {weight:?} {rows} {cols} {blocks}", isa.name);
                }
            }
        }
    }
}

/// Two rows of the same sums, the second without bias.
#[allow(unsafe_code)]
fn finished(isa: &Isa, f: &[f32], bias: &[f32]) -> Vec<f32> {
    let cols = f.len().max(1);
    let mut out = vec![0f32; 2 * cols];
    for (r, bias) in [Some(bias), None].into_iter().enumerate() {
        // SAFETY: this function's own memory.
        let row = unsafe { Shared::new(&mut out).rectangle(r * cols, cols, 1, f.len()) };
        isa.finish(f, cols, &[0.3], bias, row);
    }
    out
}

/// A run of groups, the last one longer by a block, against the portable tile and epilogue one group at a time.
#[test]
#[allow(unsafe_code)]
fn grouped_kernels_give_the_same_bits() {
    let spec = &portable::ISA;
    for isa in detected() {
        for weight in QuantType::INTEGERS {
            let (kernel, per) = (isa.kernel(weight), weight.per_byte());
            for (rows, cols, blocks) in shapes(kernel.mr).filter(|(.., blocks)| *blocks > 0 && kernel.has_grouped()) {
                let groups = 3;
                let all = groups * blocks + 1;
                let b = bytes(all * block_bytes(cols), 3 + blocks as u64);
                let a = bytes(all * per * rows * 4, 17 + rows as u64);
                let a: Vec<u8> = a.iter().map(|v| (*v).max(1)).collect(); // any code but -128
                let zeros: Vec<u8> = bytes(groups * cols, 5).iter().map(|z| z >> (8 - weight.bits())).collect();
                let wide: Vec<f32> = (0..groups * cols).map(|i| (i as f32 * 0.37).sin() * 0.1).collect();
                let halves: Vec<half::f16> = wide.iter().map(|s| half::f16::from_f32(*s)).collect();
                let mut codes = vec![0; b.len() * per];
                kernel.unpack(&b, cols, &mut codes);
                for (scales, zeros, fresh) in [
                    (Scales::F32(&wide), Some(&zeros[..]), false),
                    (Scales::F16(&halves), None, true),
                    (Scales::F16(&halves), Some(&zeros[..]), true),
                ] {
                    let start: Vec<f32> = (0..rows * cols).map(|i| i as f32 * 0.7 - 9.0).collect();
                    let mut want = if fresh { vec![0.0; start.len()] } else { start.clone() };
                    let mut sums = vec![0; groups * rows];
                    for (g, r) in (0..groups).flat_map(|g| (0..rows).map(move |r| (g, r))) {
                        let from = g * blocks;
                        let to = if g + 1 == groups { all } else { from + blocks };
                        let quads = a[from * per * rows * 4..to * per * rows * 4].chunks(rows * 4);
                        let row: Vec<u8> = quads.flat_map(|q| &q[r * 4..][..4]).copied().collect();
                        let sum = row.iter().map(|v| i32::from(*v as i8)).sum();
                        sums[g * rows + r] = split_sum(sum);
                        let mut acc = vec![0; cols];
                        let packed = &b[from * block_bytes(cols)..to * block_bytes(cols)];
                        spec.kernel(weight).tile(&row, 1, packed, cols, &mut acc, false);
                        let z = zeros.map_or(PanelZeros::Offset(weight.offset()), |z| {
                            PanelZeros::Stored(&z[g * cols..][..cols])
                        });
                        let scales: Vec<f32> = (g * cols..(g + 1) * cols).map(|i| scales.get(i)).collect();
                        spec.add_group(&acc, sum, z, &scales, &mut want[r * cols..][..cols]);
                    }
                    let arranged = arrange(&a, kernel.wide);
                    for (b, unpacked) in [(&b[..], false), (&codes[..], true)] {
                        let quads = blocks * per;
                        let run = GroupRun { quads, fresh, scales, zeros, offset: weight.offset() as u8, sums: &sums };
                        let mut got = start.clone();
                        kernel.grouped(&arranged, rows, (b, unpacked), cols, run, &mut got, None);
                        assert_eq!(got, want, "{} {rows}x{cols}, {blocks} blocks, unpacked {unpacked}", kernel.name);
                        for (used, bias) in [(cols, false), (cols - 3, true), (cols - 15, false)] {
                            let at_once = |finish: &dyn Fn(Outputs)| {
                                let factors: Vec<f32> = (0..rows).map(|r| 0.1 + r as f32).collect();
                                let bias: Option<Vec<f32>> = bias.then(|| (0..used).map(|c| c as f32 * 1.7).collect());
                                let mut all = vec![f32::NAN; rows * (used + 2)];
                                // SAFETY: this function's own memory.
                                let out = unsafe { Shared::new(&mut all).rectangle(1, used + 2, rows, used) };
                                finish(Outputs { factors: &factors, bias: bias.as_deref(), out });
                                all.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
                            };
                            let got = at_once(&|outputs| {
                                let mut f = start.clone();
                                kernel.grouped(&arranged, rows, (b, unpacked), cols, run, &mut f, Some(outputs));
                            });
                            let want = at_once(&|o| spec.finish(&want, cols, o.factors, o.bias, o.out));
                            assert_eq!(got, want, "{} {rows}x{cols}, {used} outputs", kernel.name);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn lanes_give_the_same_bits() {
    let x = floats(1003, 1);
    for isa in detected() {
        for len in [0, 1, 15, 16, 17, 64, 1003] {
            let (x, acc) = (&x[..len], (0..len as i32).map(|i| i * 70_001 - 9_000_000).collect::<Vec<_>>());
            let spec = &portable::ISA;
            assert_eq!(isa.absmax_bits(x), spec.absmax_bits(x));
            assert_eq!(isa.min_max(x), spec.min_max(x));
            let e = Encoding { scale: 0.37, shift: 0.25, lo: -100.0, hi: 90.0, base: 128 };
            let (mut got, mut want) = (vec![0u8; len], vec![0u8; len]);
            isa.encode(x, e, &mut got);
            spec.encode(x, e, &mut want);
            assert_eq!(got, want);
            for (symmetric, half) in [(false, true), (true, false)] {
                let levels = Levels { qmin: -8, qmax: 7, symmetric, half };
                let ends: [f32; TRIED] = std::array::from_fn(|i| i as f32 * 1.3);
                let (mut got, mut want) = ([0f64; TRIED], [0f64; TRIED]);
                isa.range_errors(x, &ends.map(|v| v * -0.4), &ends, levels, &mut got);
                spec.range_errors(x, &ends.map(|v| v * -0.4), &ends, levels, &mut want);
                assert_eq!(got, want, "{} {len}", isa.name);
            }
            let rule = Proximal { qmin: -8.0, qmax: 7.0, norm: 0.7, beta: 10.0 };
            let bits = |(loss, mean): (f32, f32)| (loss.to_bits(), mean.to_bits()); // the mean of nothing is NaN
            assert_eq!(bits(isa.proximal(x, 0.3, rule)), bits(spec.proximal(x, 0.3, rule)), "{} {len}", isa.name);
            let signed: Vec<i8> = got.iter().map(|u| *u as i8).collect();
            assert_eq!(isa.sum(&signed), spec.sum(&signed));
            let (mut got_f, mut want_f) = (x.to_vec(), x.to_vec());
            let scales: Vec<f32> = x.iter().map(|v| v.abs() + 0.1).collect();
            for zeros in [PanelZeros::Offset(8), PanelZeros::Stored(&want), PanelZeros::Fraction(x, 8)] {
                isa.add_group(&acc, 12_345, zeros, &scales, &mut got_f);
                spec.add_group(&acc, 12_345, zeros, &scales, &mut want_f);
            }
            assert_eq!(finished(isa, &got_f, x), finished(spec, &want_f, x), "{} {len}", isa.name);
            isa.add(&scales, &mut got_f);
            spec.add(&scales, &mut want_f);
            let (mut got_t, mut want_t) = ((x.to_vec(), scales.clone()), (x.to_vec(), scales.clone()));
            isa.fold(&mut got_f.clone(), &mut got_t.0, &mut got_t.1);
            spec.fold(&mut want_f.clone(), &mut want_t.0, &mut want_t.1);
            assert_eq!(got_t, want_t, "{} {len}", isa.name);
            assert_eq!(got_f, want_f, "{} {len}", isa.name);
            isa.decode(&got, QuantType::Int8, 0.5, 0.7, &mut got_f);
            spec.decode(&got, QuantType::Int8, 0.5, 0.7, &mut want_f);
            assert_eq!(got_f, want_f, "{} {len}", isa.name);
            for float in QuantType::FLOATS {
                let small: Vec<f32> = x.iter().enumerate().map(|(i, v)| v * 2f32.powi(-(i as i32 % 40))).collect();
                isa.encode_float8(&small, 0.3, float, &mut got);
                spec.encode_float8(&small, 0.3, float, &mut want);
                assert_eq!(got, want, "{} {float:?} {len}", isa.name);
                isa.decode(&got, float, 0.0, 0.7, &mut got_f);
                spec.decode(&got, float, 0.0, 0.7, &mut want_f);
                assert_eq!(got_f, want_f, "{} {float:?} {len}", isa.name);
            }
        }
        for weight in QuantType::INTEGERS.into_iter().chain(QuantType::FLOATS) {
            let (cols, steps, group) = (48usize, 37usize, 5usize);
            let b = bytes(steps.div_ceil(block_steps(weight)) * block_bytes(cols), 4);
            let (scales, zeros) = (floats(cols * 12, 2), floats(cols * 12, 3));
            for zeros in [None, Some(&zeros[..])] {
                let groups = Groups { first: 16, size: group, scales: &scales, zeros };
                let (mut got, mut want) = (vec![0f32; cols * steps], vec![0f32; cols * steps]);
                isa.expand(&b, cols, weight, groups, &mut got);
                portable::ISA.expand(&b, cols, weight, groups, &mut want);
                assert_eq!(got, want, "{} {weight:?}", isa.name);
            }
        }
    }
}

#[test]
fn rounding_is_half_to_even_and_clamps() {
    let x = [0.5, 1.5, 2.5, -0.5, -1.5, 1e30, -1e30, f32::MIN_POSITIVE];
    let e = Encoding { scale: 1.0, shift: 0.0, lo: -127.0, hi: 127.0, base: 0 };
    for isa in detected() {
        let mut u = [0; 8];
        isa.encode(&x, e, &mut u);
        assert_eq!(u.map(|u| u as i8), [0, 2, 2, 0, -2, 127, -127, 0], "{}", isa.name);
    }
}

#[test]
fn a_missing_level_says_what_there_is() {
    let err = named("avx1024").unwrap_err().to_string();
    assert!(err.contains("avx1024") && err.contains("portable"), "{err}");
}

/// Tiles of every width, with and without addends and factors of rows, whole and in part, whose values lie beside ties and
/// far beyond the codes.
#[test]
#[allow(unsafe_code)]
fn tiles_become_the_portable_codes() {
    let mut acc: Vec<i32> = bytes(9 * 64 * 4, 11).as_chunks().0.iter().map(|b| i32::from_le_bytes(*b) >> 12).collect();
    acc.iter_mut().step_by(7).enumerate().for_each(|(i, acc)| *acc = [1 << 30, -1 << 30, 0, 1][i % 4]);
    let addend: Vec<i8> = bytes(9 * 80, 12).into_iter().map(|b| b as i8).collect();
    let bias: Vec<f32> = floats(64, 13).iter().map(|b| (b * 2.0).round() / 2.0).collect();
    let factors: Vec<f32> = floats(9, 14).iter().map(|f| f.abs() / 256.0).collect();
    for (i, scale) in [1.0, 0.5, 1.0 / 1024.0, 1e-9].into_iter().enumerate() {
        let zero = [0, -127, 127, 5][i];
        let steps = Steps { zero, lo: [-127, -127, 0, 5][i], hi: [127, -7, 127, 100][i] };
        for (cols, first, used) in [(16, 0, 16), (16, 3, 9), (32, 0, 32), (32, 0, 20), (48, 0, 48), (48, 0, 33)]
            .into_iter()
            .chain([(64, 0, 64), (64, 0, 63), (64, 0, 24), (64, 5, 40)])
        {
            for (rows, with_factors) in (1..=9).flat_map(|rows| [(rows, false), (rows, true)]) {
                for addend in [None, Some((&addend[..], 0.25, 9))] {
                    // rows apart, and not in order
                    let at: Vec<usize> = (0..rows).map(|r| (r * 2 % 9) * 80).collect();
                    let tile = Tile {
                        cols,
                        first,
                        used,
                        scales: &[scale; 64][..cols],
                        bias: &bias[..cols],
                        factors: if with_factors { &factors[..rows] } else { &[] },
                        addend,
                        at: &at,
                        skip: 11,
                    };
                    let run = |isa: &Isa| {
                        let mut out = vec![99; 9 * 80];
                        // SAFETY: this function's own memory, whose last row begins at 8 * 80.
                        isa.tile_codes(&acc, tile, steps, unsafe { Shared::new(&mut out).rows(&at, 640, 11, used) });
                        out
                    };
                    let want = run(&portable::ISA);
                    let value = |r: usize, c: usize| {
                        let factor = if with_factors { factors[r] } else { 1.0 };
                        let v = (acc[r * cols + c] as f32).mul_add(scale * factor, bias[c]);
                        let at = at[r] + 11 + c - first;
                        let v = addend.map_or(v, |(q, s, z)| ((i32::from(q[at]) - z) as f32).mul_add(s, v));
                        (at, (v.round_ties_even() + zero as f32).clamp(steps.lo as f32, steps.hi as f32) as i8 as u8)
                    };
                    let mut defined = vec![99; 9 * 80];
                    let places = (0..rows).flat_map(|r| (first..first + used).map(move |c| (r, c)));
                    places.map(|(r, c)| value(r, c)).for_each(|(at, code)| defined[at] = code);
                    assert_eq!(want, defined);
                    for isa in detected() {
                        assert_eq!(run(isa), want, "{} {tile:?} {steps:?}", isa.name);
                    }
                }
            }
        }
    }
}
