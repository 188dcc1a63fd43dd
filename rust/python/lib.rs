//! The Python module `_rquant`: parse, release the GIL, call the core, map the error. It knows addresses and sizes, no
//! framework; `python/rquant/_rquant.pyi` is its documentation.

mod arguments;
mod conv;
mod cuda;
mod elementwise;
mod matrix;
mod observe;
#[cfg(target_os = "linux")]
mod openmp;
mod packed;
mod static_product;
mod threads;
#[cfg(target_os = "linux")]
mod torch_shim;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _rquant {
    use super::*;
    use crate::arguments as codes;

    #[pymodule_export]
    use conv::{conv_fixed, conv_size, dequantize_static, quantize_images, quantize_static};
    #[pymodule_export]
    use cuda::{
        cuda_bitpack, cuda_compile, cuda_compile_text, cuda_configure, cuda_dequantize, cuda_device,
        cuda_driver_present, cuda_find_outliers, cuda_gather_rows, cuda_linear, cuda_linear_int8, cuda_linear_parts,
        cuda_modules, cuda_nvrtc_version, cuda_outlier_products, cuda_precompile, cuda_quantize_rows,
    };
    #[pymodule_export]
    use elementwise::{
        adaptive_avg_pool_static, add_static, affine_static, avg_pool_static, concat_static, fake_quantize_static,
        layer_norm_static, lookup_static, max_pool_static, pooled_size, requantize_static,
    };
    #[pymodule_export]
    use matrix::{
        dequantize, encode, half_quadratic, pack_codes, qparams, quantize_rows, ranges, row_bytes, search, unpack_codes,
    };
    #[pymodule_export]
    use observe::{Histogram, extent};
    #[pymodule_export]
    use packed::{
        gather_rows, gemm_i32, linear, linear_outliers, pack, packed_info, packed_is_native, packed_len, unpack,
    };
    #[pymodule_export]
    use static_product::{StaticProduct, conv_static};
    #[pymodule_export]
    use threads::{adopt_openmp, choose_threads, default_threads};

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        m.add("__version__", env!("CARGO_PKG_VERSION"))?;
        m.add("FLOAT32", codes::FLOAT32)?;
        m.add("FLOAT16", codes::FLOAT16)?;
        m.add("BFLOAT16", codes::BFLOAT16)?;
        m.add("ZP_NONE", codes::ZP_NONE)?;
        m.add("ZP_UINT8", codes::ZP_UINT8)?;
        m.add("ZP_FLOAT16", codes::ZP_FLOAT16)
    }

    #[pyfunction]
    fn isa() -> PyResult<&'static str> {
        Ok(rquant::active_isa().map_err(codes::value_error)?.name)
    }

    #[pyfunction]
    fn supported_isas() -> Vec<&'static str> {
        rquant::detected_isas().map(|isa| isa.name).collect()
    }

    #[pyfunction]
    fn kernel_name(kind: usize) -> PyResult<&'static str> {
        let isa = rquant::active_isa().map_err(codes::value_error)?;
        let qtype = codes::qtype(kind)?;
        Ok(if qtype.is_float() { "expanded to float32" } else { isa.kernel(qtype).name })
    }

    #[pyfunction]
    fn register_torch_kernels() -> bool {
        #[cfg(target_os = "linux")]
        return crate::torch_shim::register();
        #[cfg(not(target_os = "linux"))]
        false
    }
}
