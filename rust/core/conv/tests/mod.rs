//! Whole convolutions at every instruction set, with one and two threads, against the scalar definition.

mod codes;
mod errors;
mod fixed;
mod geometries;
mod schemes;

use super::*;
use crate::cpu::forced::each_isa;
use crate::gemm::tests::{Noise, Weight, executors};
use crate::{Executor, FloatsMut, QuantType};

/// A call in all its parts.
struct Call {
    geometry: Geometry,
    out_size: [usize; 2],
    x: Vec<i8>,
    scales: Vec<f32>,
    zero: i8,
    w: Weight,
    bias: Option<Vec<f32>>,
    addend: Option<(Vec<i8>, f32, i8)>,
    lo: f32,
    hi: f32,
    scale: f32,
    out_zero: i8,
}

impl Call {
    /// `group` of the weight's scales, `kind` of its zero points; what else there is varies with `noise`.
    fn new(geometry: Geometry, qtype: QuantType, group: usize, kind: usize, noise: &mut Noise) -> Self {
        let out_size = geometry.out_size().unwrap();
        let count = geometry.batch * geometry.size[0] * geometry.size[1] * geometry.channels;
        let outputs = geometry.batch * out_size[0] * out_size[1] * geometry.out_channels;
        let codes = |noise: &mut Noise, len| -> Vec<i8> {
            noise.codes(len, QuantType::Int8).into_iter().map(|q| q.max(-127)).collect()
        };
        let zeros = [0, -127, 127, 5];
        let scales = if noise.next().is_multiple_of(2) { 1 } else { geometry.batch };
        Self {
            x: codes(noise, count),
            scales: noise.floats(scales).iter().map(|s| s.abs() * 0.1 + 0.01).collect(),
            zero: zeros[noise.next() as usize % 4],
            w: Weight::new(geometry.out_channels, geometry.depth(), group, qtype, kind, noise),
            bias: noise.next().is_multiple_of(2).then(|| noise.floats(geometry.out_channels)),
            addend: noise
                .next()
                .is_multiple_of(2)
                .then(|| (codes(noise, outputs), 0.37, zeros[noise.next() as usize % 4])),
            lo: [f32::NEG_INFINITY, 0.0][noise.next() as usize % 2],
            hi: [f32::INFINITY, 6.0][noise.next() as usize % 2],
            scale: [0.05, 1.0, 31.7][noise.next() as usize % 3],
            out_zero: zeros[noise.next() as usize % 4],
            geometry,
            out_size,
        }
    }

    /// What one output is a sum over: the activations less their zero point. And its image.
    fn terms(&self, row: usize, channel: usize) -> (Vec<i64>, usize) {
        let g = &self.geometry;
        let pixels = self.out_size[0] * self.out_size[1];
        let (image, y, x) = (row / pixels, row % pixels / self.out_size[1], row % self.out_size[1]);
        let each = g.channels / g.groups;
        let first = channel / (g.out_channels / g.groups) * each;
        // what a tap reads, from the definition of either convolution: out = in · stride + tap · dilation − padding
        let source = |axis: usize, out: usize, tap: usize| -> Option<usize> {
            let (stride, reach) = (g.stride[axis], tap * g.dilation[axis]);
            (0..g.size[axis]).find(|from| match g.transposed {
                None => out * stride + reach == from + g.padding[axis],
                Some(_) => from * stride + reach == out + g.padding[axis],
            })
        };
        let mut a = Vec::new();
        for (tap_y, tap_x) in (0..g.kernel[0]).flat_map(|y| (0..g.kernel[1]).map(move |x| (y, x))) {
            let at = source(0, y, tap_y).zip(source(1, x, tap_x));
            for c in first..first + each {
                let code =
                    at.map_or(self.zero, |(y, x)| self.x[((image * g.size[0] + y) * g.size[1] + x) * g.channels + c]);
                a.push(i64::from(code) - i64::from(self.zero));
            }
        }
        (a, image)
    }

    /// One output as a float, and as a code; `unscaled` is the weight without its scales.
    fn output(&self, row: usize, channel: usize, unscaled: &Weight) -> (f32, i8) {
        let (a, image) = self.terms(row, channel);
        let scale = self.scales[if self.scales.len() == 1 { 0 } else { image }];
        let (f, bias) = (self.w.sums_definition(&a, channel), self.bias.as_ref().map_or(0.0, |bias| bias[channel]));
        let addend = self.addend.as_ref().map(|(q, scale, zero)| {
            (f32::from(i16::from(q[row * self.geometry.out_channels + channel]) - i16::from(*zero)), *scale)
        });
        let v = f.mul_add(scale, bias);
        let v = addend.map_or(v, |(steps, scale)| steps.mul_add(scale, v)).max(self.lo).min(self.hi);

        let factor = scale / self.scale;
        let steps = if self.w.group >= self.geometry.depth() {
            unscaled.sums_definition(&a, channel).mul_add(self.w.scales[channel] * factor, bias / self.scale)
        } else {
            f.mul_add(factor, bias / self.scale)
        };
        let steps = addend.map_or(steps, |(q, scale)| q.mul_add(scale / self.scale, steps));
        let zero = f32::from(self.out_zero);
        let encode = |v: f32| ((v / self.scale).round_ties_even() + zero).clamp(-127.0, 127.0);
        let q = steps.round_ties_even() + zero;
        // `max` of NaN and a number is the number
        (v, q.max(encode(self.lo)).min(encode(self.hi)) as i8)
    }

    fn outputs(&self) -> (Vec<f32>, Vec<i8>) {
        let rows = self.geometry.batch * self.out_size[0] * self.out_size[1];
        let unscaled = &self.w.clone().unscaled();
        (0..rows).flat_map(|row| (0..self.geometry.out_channels).map(move |c| self.output(row, c, unscaled))).unzip()
    }

    fn run(&self, packed: PackedRef, out: Output, executor: &dyn Executor) -> Result<()> {
        let addend = self.addend.as_ref().map(|(q, scale, zero)| Codes { q, scale: *scale, zero: *zero });
        let epilogue = Epilogue { bias: self.bias.as_deref(), addend, lo: self.lo, hi: self.hi };
        let x = Input { q: &self.x, scales: &self.scales, zero: self.zero };
        conv_static(x, &self.geometry, packed, epilogue, out, executor)
    }

    /// Codes and floats of every instruction set, with each executor, are the definition's.
    fn check(&self, executors: [&dyn Executor; 2]) {
        let (values, codes) = self.outputs();
        each_isa(|isa| {
            for groups in [1, self.geometry.groups] {
                let packed = self.w.pack_grouped(groups);
                let packed = PackedRef::parse(&packed).unwrap();
                assert!(packed.is_native(groups));
                for executor in executors {
                    let (mut got, mut floats) = (vec![0i8; codes.len()], vec![0f32; codes.len()]);
                    self.run(packed, Output::Codes(&mut got, self.scale, self.out_zero), executor).unwrap();
                    let what = || format!("{} {:?} {}t", isa.name, self.geometry, executor.threads());
                    assert!(got == codes, "codes {} {}", what(), differing(&got, &codes));
                    self.run(packed, Output::Floats(FloatsMut::F32(&mut floats)), executor).unwrap();
                    let same = floats.iter().zip(&values).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()));
                    assert!(same, "floats {} {}", what(), differing(&floats, &values));
                }
            }
        });
    }
}

/// Where two results differ, in words.
fn differing<T: PartialEq + std::fmt::Debug>(got: &[T], want: &[T]) -> String {
    let first = (0..got.len()).find(|i| got[*i] != want[*i]).unwrap_or(0);
    let count = got.iter().zip(want).filter(|(g, w)| g != w).count();
    format!("{count} of {} differ, the first at {first}: {:?}, not {:?}", got.len(), got[first], want[first])
}

/// A square one.
fn square(
    batch: usize,
    size: usize,
    channels: usize,
    outputs: usize,
    kernel: usize,
    stride: usize,
    pad: usize,
) -> Geometry {
    Geometry {
        batch,
        size: [size; 2],
        channels,
        out_channels: outputs,
        kernel: [kernel; 2],
        stride: [stride; 2],
        padding: [pad; 4],
        dilation: [1; 2],
        groups: 1,
        transposed: None,
    }
}
