//! From a kernel to LLVM's text, by CubeCL's own passes.
//!
//! CubeCL's compiler for the CPU lowers a kernel, verifies what it got, optimises it with LLVM and links it, all in one
//! function that shows nothing of what lies between: no object that could be kept. But it verifies every operation of the
//! module that it lowered, those of other crates too. So a [`Lowered`] is put into the module, beside the kernel's
//! function where no pass looks: when it is verified, everything before it is lowered and verified. It then writes the
//! module down as text, just as CubeCL would hand it to LLVM, and ends the compilation there by refusing the module.

use std::backtrace::Backtrace;
use std::cell::RefCell;

use cubecl::Compiler;
use cubecl::prelude::CubeKernel;
use cubecl_llvm::shared::shared_memory::declares_shared_memory;
use cubecl_llvm::{PlironCompiler, PlironOptions};
use pliron::builtin::op_interfaces::{NOpdsInterface, NResultsInterface, SingleBlockRegionInterface};
use pliron::builtin::ops::ModuleOp;
use pliron::common_traits::Verify;
use pliron::context::Context;
use pliron::derive::pliron_op;
use pliron::location::Location;
use pliron::op::Op;
use pliron::operation::Operation;
use pliron::result::{Error, ErrorKind, StringError};
use pliron_llvm::llvm_sys::core::{LLVMContext, llvm_print_module_to_string};
use pliron_llvm::to_llvm_ir::convert_module;

thread_local! {
    /// What the [`Lowered`] of the module that this thread compiles has written.
    static WRITTEN: RefCell<Option<Result<String, String>>> = const { RefCell::new(None) };
}

/// A kernel as LLVM reads it.
pub(super) struct Text {
    /// The module, not yet optimised.
    pub(super) module: String,
    /// The function that is the kernel.
    pub(super) entry: String,
}

/// Lowers a kernel whose buffers start at multiples of `alignment` bytes.
pub(super) fn lower(kernel: &dyn CubeKernel, alignment: u32) -> Result<Text, String> {
    let failed = |error: cubecl::CompilationError| format!("kernel {}: {error}", kernel.name());
    let definition = cubecl::define_kernel(kernel).map_err(failed)?;
    let module = definition.body.state().module;
    if declares_shared_memory(definition.body.ctx(), module.get_operation()) {
        return Err(format!("kernel {} needs shared memory", kernel.name()));
    }
    let entry = definition.settings.kernel_name.clone();
    let lowered = Lowered::new(definition.body.ctx_mut());
    let body = module.get_body(definition.body.ctx(), 0);
    lowered.get_operation().insert_at_back(body, definition.body.ctx());

    WRITTEN.take();
    let options = PlironOptions { cpu_buffer_alignment: Some(alignment), ..PlironOptions::default() };
    let refused = PlironCompiler::default().compile(definition, &options);
    let module = match (WRITTEN.take(), refused) {
        (Some(written), _) => written.map_err(|error| format!("kernel {}: {error}", kernel.name()))?,
        (None, Err(error)) => return Err(failed(error)),
        (None, Ok(_)) => return Err(format!("kernel {}: its module was not verified", kernel.name())),
    };
    Ok(Text { module, entry })
}

/// An operation beside the kernel's function that writes the module down when it is verified.
#[pliron_op(name = "moec.lowered", format, interfaces = [NOpdsInterface<0>, NResultsInterface<0>])]
struct Lowered;

impl Lowered {
    fn new(ctx: &mut Context) -> Self {
        Self { op: Operation::new(ctx, Self::get_concrete_op_info(), vec![], vec![], vec![], 0) }
    }

    /// The module around it as text.
    fn write(self, ctx: &Context) -> Result<String, String> {
        let parent = self.get_operation().deref(ctx).get_parent_op(ctx);
        let module = parent.and_then(|parent| Operation::get_op::<ModuleOp>(parent, ctx)).ok_or("it has no module")?;
        let context = LLVMContext::default();
        let converted = convert_module(ctx, &context, module).map_err(|error| error.to_string())?;
        llvm_print_module_to_string(&converted).ok_or_else(|| "its module cannot be written".to_string())
    }
}

impl Verify for Lowered {
    fn verify(&self, ctx: &Context) -> pliron::result::Result<()> {
        WRITTEN.set(Some(self.write(ctx)));
        // By hand, since the macros for it note and print where they are, which takes far longer than lowering.
        Err(Error {
            kind: ErrorKind::VerificationFailed,
            err: Box::new(StringError("it is to be kept, not run".into())),
            loc: Location::Unknown,
            backtrace: Backtrace::disabled(),
        })
    }
}
