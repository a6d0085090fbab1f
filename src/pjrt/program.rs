//! Programs: their code and signature before compilation, and the plugin's description of a
//! compiled one.

use super::{
    abi::{
        CStruct, ExecutableDestroy, ExecutableGetCompiledMemoryStats, ExecutableNumOutputs, ExecutableOptimizedProgram,
        ExecutableSerialize, Padded, Program as CProgram, Ptr,
    },
    api::{Api, string},
    error::Result,
    tensor_type::TensorType,
};

/// The parameters and outputs of a program on each device. The C API does not describe the
/// parameters of a compiled program, so the caller who emitted it does. Every execution is checked
/// against the signature.
#[derive(Clone, Debug, Default)]
pub struct Signature {
    /// The name and type of each parameter. The names are for error messages.
    pub parameters: Vec<(String, TensorType)>,
    pub outputs: Vec<TensorType>,
    /// Parameters whose memory an output reuses, if they are donated.
    pub aliased: Vec<usize>,
}

/// The code of a program, in a format that the plugin compiles.
#[derive(Clone, Debug)]
pub struct Program<'a> {
    pub code: &'a [u8],
    /// `"hlo"` (a serialized HloModuleProto) or `"mlir"`.
    pub format: &'a str,
}

impl Program<'_> {
    pub(super) fn as_c(&self) -> CProgram {
        CProgram {
            code: self.code.as_ptr().cast_mut().cast(), // in/out in the C API; compile only reads it
            code_size: self.code.len(),
            format: self.format.as_ptr().cast(),
            format_size: self.format.len(),
            ..CProgram::zeroed()
        }
    }
}

/// Memory that a compiled program needs on each device, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompiledMemoryStats {
    pub generated_code: i64,
    pub arguments: i64,
    pub outputs: i64,
    /// The part of `outputs` that reuses donated arguments.
    pub alias: i64,
    pub temporaries: i64,
    /// 0 where the plugin does not report it.
    pub peak: i64,
}

/// The handle of a `PJRT_Executable`: the description of a compiled program, loaded or not.
pub(super) struct Description {
    api: Api,
    ptr: Ptr,
}
// SAFETY: executables are immutable and thread-safe.
unsafe impl Send for Description {}
// SAFETY: as above.
unsafe impl Sync for Description {}

impl Description {
    pub(super) fn new(api: &Api, ptr: Ptr) -> Self {
        Self { api: api.clone(), ptr }
    }

    pub(super) fn num_outputs(&self) -> Result<usize> {
        Ok(self.api.call(ExecutableNumOutputs { executable: self.ptr, ..CStruct::zeroed() })?.num_outputs)
    }

    pub(super) fn memory_stats(&self) -> Result<CompiledMemoryStats> {
        let stats = self.api.call(ExecutableGetCompiledMemoryStats { executable: self.ptr, ..CStruct::zeroed() })?;
        Ok(CompiledMemoryStats {
            generated_code: stats.generated_code_size_in_bytes,
            arguments: stats.argument_size_in_bytes,
            outputs: stats.output_size_in_bytes,
            alias: stats.alias_size_in_bytes,
            temporaries: stats.temp_size_in_bytes,
            peak: stats.peak_memory_in_bytes,
        })
    }

    /// Returns the program after the plugin's optimisations: format and bytes.
    pub(super) fn optimized_program(&self) -> Result<(String, Vec<u8>)> {
        let mut program = Padded::new(CProgram::zeroed());
        // The first call returns the size, the second one fills the memory.
        let ask = |program: &mut Padded<CProgram>| {
            let args = ExecutableOptimizedProgram { executable: self.ptr, ..CStruct::zeroed() };
            self.api.call(ExecutableOptimizedProgram { program: &raw mut program.value, ..args })
        };
        ask(&mut program)?;
        let mut code = vec![0u8; program.value.code_size];
        program.value.code = code.as_mut_ptr().cast();
        ask(&mut program)?;
        Ok((string(program.value.format, program.value.format_size), code))
    }

    pub(super) fn serialize(&self) -> Result<Vec<u8>> {
        let out = self.api.call(ExecutableSerialize { executable: self.ptr, ..CStruct::zeroed() })?;
        // SAFETY: the plugin returned this many bytes, alive until the deleter is called.
        let bytes = unsafe {
            std::slice::from_raw_parts(out.serialized_bytes.cast::<u8>(), out.serialized_bytes_size).to_vec()
        };
        if let Some(delete) = out.serialized_executable_deleter {
            // SAFETY: called once, with the object that it belongs to; the bytes were copied.
            unsafe { delete(out.serialized_executable) };
        }
        Ok(bytes)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        self.api.destroy(ExecutableDestroy { executable: self.ptr, ..CStruct::zeroed() });
    }
}
