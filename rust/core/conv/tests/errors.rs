//! What does not fit is named.

use super::*;
use crate::{Floats, Serial};

fn message(change: impl FnOnce(&mut Call)) -> String {
    let mut call = Call::new(square(2, 4, 8, 8, 3, 1, 1), QuantType::Int8, 72, 0, &mut Noise(1));
    let packed = call.w.pack_grouped(1);
    let mut out = vec![0; 2 * 4 * 4 * 8];
    (call.bias, call.addend) = (Some(vec![0.0; 8]), Some((vec![0; out.len()], 1.0, 0)));
    change(&mut call);
    let out = Output::Codes(&mut out, call.scale, call.out_zero);
    call.run(PackedRef::parse(&packed).unwrap(), out, &Serial).unwrap_err().to_string()
}

#[test]
fn arguments_that_do_not_fit_are_named() {
    let starts = |text: String, with: &str| assert!(text.starts_with(with), "{text}");
    starts(message(|c| c.x.truncate(5)), "x: expected length 256, got 5");
    starts(message(|c| c.scales = vec![1.0; 3]), "x_scale: expected length 1 or 2");
    starts(message(|c| c.scales = vec![0.0]), "x_scale: expected a finite positive number, got 0");
    starts(message(|c| c.zero = -128), "x_zero: expected at least -127");
    starts(message(|c| c.bias = Some(vec![])), "bias: expected length 8, got 0");
    starts(message(|c| c.addend = Some((vec![], 1.0, 0))), "addend: expected length 256, got 0");
    starts(message(|c| c.scale = f32::NAN), "out_scale");
    starts(message(|c| c.out_zero = -128), "out_zero");
    starts(message(|c| c.lo = f32::NAN), "lo, hi");
    starts(
        message(|c| c.geometry.kernel = [5, 5]),
        "panels: expected a weight [8, 200] for this geometry, got [8, 72]",
    );
    starts(message(|c| c.geometry.kernel = [0, 3]), "kernel: expected at least 1");
    starts(message(|c| c.geometry.groups = 3), "channels: expected a multiple of 3 groups, got 8");
    starts(message(|c| c.geometry.dilation = [9, 9]), "size: expected a size whose output is not empty");
    starts(message(|c| c.geometry.padding = [usize::MAX; 4]), "size: expected an output that fits memory");
    starts(message(|c| c.geometry.transposed = Some([1, 1])), "output_padding: expected less than");
}

#[test]
fn samples_that_do_not_divide_are_named() {
    let text = quantize_static(Floats::F32(&[0.0; 5]), 1.0, 0, &mut [0; 5], &mut [true; 2], &Serial);
    assert!(text.unwrap_err().to_string().starts_with("finite: expected a divisor of 5"));
}
