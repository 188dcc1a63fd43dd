//! Columns in float beside the integer product, against its documented definition.

use super::*;

/// One output: the integers of a row without the columns, and `o = bias; o = fma(w, x, o)` for each of them.
fn definition(w: &Weight, float: &[f32], x: &[f32], columns: &[i64], bias: f32, c: usize) -> f32 {
    let mut rest = x.to_vec();
    columns.iter().for_each(|column| rest[*column as usize] = 0.0);
    let (mut a, mut scale) = (vec![0i8; w.k], [0f32]);
    quantize_rows(Floats::F32(&rest), 1, w.k, &mut a, &mut scale, &Serial).unwrap();
    let plus = columns.iter().fold(bias, |o, column| float[c * w.k + *column as usize].mul_add(x[*column as usize], o));
    w.integer_definition(&a, scale[0], c, plus)
}

fn check(m: usize, w: &Weight, noise: &mut Noise, executors: [&dyn Executor; 2]) {
    let (mut x, bias) = (noise.floats(m * w.k), noise.floats(w.n));
    let columns: Vec<i64> = (0..w.k as i64).filter(|_| noise.next().is_multiple_of(9)).collect();
    // in one row or another
    columns.iter().for_each(|column| x[noise.next() as usize % m * w.k + *column as usize] = -7.5);
    let mut float = vec![0f32; w.n * w.k];
    dequantize(&w.view(), FloatsMut::F32(&mut float), &Serial).unwrap();
    let kept = noise.floats(w.n * columns.len());
    let mut with_kept = float.clone();
    for (row, kept) in with_kept.chunks_mut(w.k).zip(kept.chunks(columns.len().max(1))) {
        columns.iter().zip(kept).for_each(|(column, kept)| row[*column as usize] = *kept);
    }
    each_isa(|isa| {
        let packed = w.pack();
        let packed = PackedRef::parse(&packed).unwrap();
        for (outliers, float) in [
            (Outliers::Above(7.5), &float),
            (Outliers::Columns(&columns, None), &float),
            (Outliers::Columns(&columns, Some(Floats::F32(&kept))), &with_kept),
        ] {
            for executor in executors {
                let mut out = vec![0f32; m * w.n];
                let target = FloatsMut::F32(&mut out);
                linear_outliers(Floats::F32(&x), m, packed, Some(&bias), outliers, target, executor).unwrap();
                for (i, got) in out.iter().enumerate() {
                    let (r, c) = (i / w.n, i % w.n);
                    let want = definition(w, float, &x[r * w.k..][..w.k], &columns, bias[c], c);
                    let what = (isa.name, w.qtype, r, c, m, w.n, w.k, w.group, outliers);
                    assert_eq!(*got, want, "{what:?}");
                }
            }
        }
    });
}

#[test]
fn columns_in_float_keep_their_definition_for_every_scheme() {
    let (serial, pool) = executors();
    let mut noise = Noise(20);
    for qtype in QuantType::INTEGERS {
        for kind in 0..3 {
            for (m, n, k) in [(1, 17, 40), (3, 64, 65), (13, 70, 129), (50, 20, 33)] {
                for group in [1, 7, 16, 32, k] {
                    let w = Weight::new(n, k, group, qtype, kind, &mut noise);
                    check(m, &w, &mut noise, [&serial, &pool]);
                }
            }
        }
    }
}

#[test]
fn without_outliers_it_is_the_plain_product() {
    let mut noise = Noise(21);
    let w = Weight::new(20, 70, 32, QuantType::Int4, 1, &mut noise);
    let x = noise.floats(3 * w.k);
    each_isa(|_| {
        let packed = w.pack();
        let packed = PackedRef::parse(&packed).unwrap();
        let (mut want, mut got) = (vec![0f32; 3 * w.n], vec![1f32; 3 * w.n]);
        let target = FloatsMut::F32(&mut want);
        linear(Floats::F32(&x), 3, packed, None, Arithmetic::Integer, target, &Serial).unwrap();
        for outliers in [Outliers::Above(2.0), Outliers::Columns(&[], None)] {
            let target = FloatsMut::F32(&mut got);
            linear_outliers(Floats::F32(&x), 3, packed, None, outliers, target, &Serial).unwrap();
            assert_eq!(got, want);
        }
    });
}

/// A bad row chooses no columns for the others, and is NaN even where all that is bad lies in such a column.
#[test]
fn a_bad_row_with_outliers_is_nan_and_leaves_the_others_alone() {
    let mut noise = Noise(22);
    let w = Weight::new(20, 70, 70, QuantType::Int8, 0, &mut noise);
    let mut clean = noise.floats(4 * w.k);
    clean[5] = 9.0;
    let mut dirty = clean.clone();
    (dirty[w.k + 5], dirty[2 * w.k + 69], dirty[2 * w.k + 8]) = (f32::INFINITY, f32::NAN, 50.0);
    each_isa(|_| {
        let packed = w.pack();
        let packed = PackedRef::parse(&packed).unwrap();
        for outliers in [Outliers::Above(6.0), Outliers::Columns(&[5, 69], None)] {
            let (mut want, mut got) = (vec![0f32; 4 * w.n], vec![0f32; 4 * w.n]);
            for (x, out) in [(&clean, &mut want), (&dirty, &mut got)] {
                linear_outliers(Floats::F32(x), 4, packed, None, outliers, FloatsMut::F32(out), &Serial).unwrap();
            }
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                if (1..=2).contains(&(i / w.n)) { assert!(got.is_nan()) } else { assert_eq!(got, want) }
            }
        }
    });
}

#[test]
fn bad_outliers_are_named() {
    let w = Weight::new(2, 10, 10, QuantType::Int8, 0, &mut Noise(23));
    let packed = w.pack();
    let kept = [0f32; 3];
    for (outliers, message) in [
        (Outliers::Above(0.0), "threshold: expected a number above 0, got 0"),
        (Outliers::Above(f32::NAN), "threshold: expected a number above 0, got NaN"),
        (Outliers::Columns(&[3, 3], None), "columns: expected ascending, in [0, 10), got 3"),
        (Outliers::Columns(&[-1], None), "columns: expected ascending, in [0, 10), got -1"),
        (Outliers::Columns(&[10], None), "columns: expected ascending, in [0, 10), got 10"),
        (Outliers::Columns(&[1], Some(Floats::F32(&kept))), "column_weight: expected length 2, got 3"),
    ] {
        let (x, mut out) = ([0f32; 10], [0f32; 2]);
        let packed = PackedRef::parse(&packed).unwrap();
        let error = linear_outliers(Floats::F32(&x), 1, packed, None, outliers, FloatsMut::F32(&mut out), &Serial);
        assert_eq!(error.unwrap_err().to_string(), message);
    }
}
