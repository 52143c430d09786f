//! What is asked of LLVM: to make an object of a module's text, and to link objects into this process.

#![allow(unsafe_code, reason = "LLVM is called through its C interface")]

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

use llvm_sys::core::{
    LLVMContextCreate, LLVMContextDispose, LLVMCreateMemoryBufferWithMemoryRangeCopy, LLVMDisposeMemoryBuffer,
    LLVMDisposeMessage, LLVMDisposeModule, LLVMGetBufferSize, LLVMGetBufferStart, LLVMGetNamedFunction, LLVMGetVersion,
    LLVMSetTarget, LLVMSetValueName2,
};
use llvm_sys::error::{LLVMDisposeErrorMessage, LLVMErrorRef, LLVMGetErrorMessage};
use llvm_sys::ir_reader::LLVMParseIRInContext2;
use llvm_sys::orc2::lljit::{
    LLVMOrcCreateLLJIT, LLVMOrcLLJITAddObjectFileWithRT, LLVMOrcLLJITGetMainJITDylib, LLVMOrcLLJITLookup,
    LLVMOrcLLJITRef,
};
use llvm_sys::orc2::{
    LLVMOrcJITDylibCreateResourceTracker, LLVMOrcReleaseResourceTracker, LLVMOrcResourceTrackerRemove,
};
use llvm_sys::prelude::{LLVMContextRef, LLVMMemoryBufferRef, LLVMModuleRef};
use llvm_sys::target::{LLVMDisposeTargetData, LLVMSetModuleDataLayout};
use llvm_sys::target_machine::{
    LLVMCodeGenFileType, LLVMCodeGenOptLevel, LLVMCodeModel, LLVMCreateTargetDataLayout, LLVMCreateTargetMachine,
    LLVMDisposeTargetMachine, LLVMGetDefaultTargetTriple, LLVMGetHostCPUFeatures, LLVMGetHostCPUName,
    LLVMGetTargetFromTriple, LLVMRelocMode, LLVMTargetMachineEmitToMemoryBuffer, LLVMTargetMachineRef,
};
use llvm_sys::transforms::pass_builder::{LLVMCreatePassBuilderOptions, LLVMDisposePassBuilderOptions, LLVMRunPasses};

/// Passes over a kernel before it becomes code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passes {
    /// CubeCL's for kernels of the CPU: whatever LLVM has.
    All,
    /// For loops that are vectorised and unrolled as they are written: what is kept in arrays of known length comes to
    /// registers, and what does not change in a loop goes out of it. A product then takes as long as with all passes, and LLVM a
    /// fifth of the time for it. Kernels that add single numbers in loops would take up to four times as long.
    AsWritten,
}

impl Passes {
    fn pipeline(self) -> &'static CStr {
        match self {
            Self::All => c"default<O3>",
            Self::AsWritten => {
                c"function(sroa,early-cse<memssa>,instcombine,simplifycfg,loop-mssa(licm),loop(loop-unroll-full),gvn,loop-mssa(licm),instcombine,simplifycfg,sink)"
            }
        }
    }
}

/// The processor that objects are made for: this one, with all it can do.
pub(super) struct Processor {
    triple: CString,
    name: CString,
    features: CString,
}

impl Processor {
    /// The processor of this machine, which LLVM then has a target for.
    pub(super) fn this() -> Result<&'static Self, String> {
        static THIS: OnceLock<Result<Processor, String>> = OnceLock::new();
        let this = THIS.get_or_init(|| {
            pliron_llvm::llvm_sys::target::initialize_native()?;
            // SAFETY: each call gives a string of LLVM's that is ours to free.
            let [triple, name, features] = unsafe {
                [LLVMGetDefaultTargetTriple(), LLVMGetHostCPUName(), LLVMGetHostCPUFeatures()].map(|text| message(text))
            };
            Ok(Self { triple: c_string(&triple)?, name: c_string(&name)?, features: c_string(&features)? })
        });
        this.as_ref().map_err(Clone::clone)
    }

    /// A processor of the same family by the name that LLVM has for it, to look at what it would be given.
    #[cfg(test)]
    pub(super) fn named(name: &str) -> Result<Self, String> {
        Ok(Self { triple: Self::this()?.triple.clone(), name: c_string(name)?, features: CString::default() })
    }

    /// All that an object depends on besides its kernel: the version of LLVM, and the processor.
    pub(super) fn describe(&self) -> String {
        let (mut major, mut minor, mut patch) = (0, 0, 0);
        // SAFETY: three numbers to write to.
        unsafe { LLVMGetVersion(&raw mut major, &raw mut minor, &raw mut patch) };
        let [triple, name, features] = [&self.triple, &self.name, &self.features].map(|text| text.to_string_lossy());
        format!("LLVM {major}.{minor}.{patch} for {triple} {name} {features}")
    }

    /// A machine that makes code at this level.
    fn machine(&self, level: LLVMCodeGenOptLevel) -> Result<TargetMachine, String> {
        // What LLVM's own linker for code of this process asks for.
        let (relocation, model) = (LLVMRelocMode::LLVMRelocPIC, LLVMCodeModel::LLVMCodeModelSmall);
        let (mut target, mut error) = (null_mut(), null_mut());
        // SAFETY: the strings live longer than the calls, the target is registered (`Processor::this`), and a failed
        // search leaves a message that is ours.
        let machine = unsafe {
            if LLVMGetTargetFromTriple(self.triple.as_ptr(), &raw mut target, &raw mut error) != 0 {
                return Err(message(error));
            }
            let (triple, name, features) = (self.triple.as_ptr(), self.name.as_ptr(), self.features.as_ptr());
            LLVMCreateTargetMachine(target, triple, name, features, level, relocation, model)
        };
        if machine.is_null() { Err("LLVM makes no code for this processor".into()) } else { Ok(TargetMachine(machine)) }
    }

    /// Optimises a module and makes an object of it, in which the function `entry` is called `symbol`.
    pub(super) fn object(&self, text: &str, passes: Passes, entry: &str, symbol: &str) -> Result<Vec<u8>, String> {
        let module = Module::parse(text)?;
        let optimiser = self.machine(LLVMCodeGenOptLevel::LLVMCodeGenLevelAggressive)?;
        // As CubeCL: optimised as if for the highest level, then made into code at the level that LLVM takes for code
        // of the own process.
        let emitter = self.machine(LLVMCodeGenOptLevel::LLVMCodeGenLevelDefault)?;
        let entry = c_string(entry)?;
        // SAFETY: module and machines are live for all calls and belong to this thread alone; layout, options and buffer
        // are freed once, after their last use; the symbol is read for the length that is given.
        unsafe {
            LLVMSetTarget(module.module, self.triple.as_ptr());
            let layout = LLVMCreateTargetDataLayout(optimiser.0);
            LLVMSetModuleDataLayout(module.module, layout);
            LLVMDisposeTargetData(layout);
            let options = LLVMCreatePassBuilderOptions();
            let optimised = LLVMRunPasses(module.module, passes.pipeline().as_ptr(), optimiser.0, options);
            LLVMDisposePassBuilderOptions(options);
            checked(optimised)?;
            let function = LLVMGetNamedFunction(module.module, entry.as_ptr());
            if function.is_null() {
                return Err(format!("there is no function {}", entry.to_string_lossy()));
            }
            LLVMSetValueName2(function, symbol.as_ptr().cast(), symbol.len());
            let (mut buffer, mut error) = (null_mut(), null_mut());
            let object = LLVMCodeGenFileType::LLVMObjectFile;
            let failed =
                LLVMTargetMachineEmitToMemoryBuffer(emitter.0, module.module, object, &raw mut error, &raw mut buffer);
            if failed != 0 {
                return Err(message(error));
            }
            let bytes = std::slice::from_raw_parts(LLVMGetBufferStart(buffer).cast::<u8>(), LLVMGetBufferSize(buffer));
            let bytes = bytes.to_vec();
            LLVMDisposeMemoryBuffer(buffer);
            Ok(bytes)
        }
    }
}

/// Objects in this process, which stay to its end.
pub(super) struct Linker(LLVMOrcLLJITRef);

// SAFETY: LLVM's linker locks what its threads share; the pointer to it never changes.
unsafe impl Send for Linker {}
// SAFETY: as above.
unsafe impl Sync for Linker {}

impl Linker {
    /// The linker of this process.
    pub(super) fn this() -> Result<&'static Self, String> {
        static THIS: OnceLock<Result<Linker, String>> = OnceLock::new();
        let this = THIS.get_or_init(|| {
            Processor::this()?;
            let mut jit = null_mut();
            // SAFETY: without a builder it is made with defaults; on success the pointer is set.
            unsafe { checked(LLVMOrcCreateLLJIT(&raw mut jit, null_mut()))? };
            Ok(Self(jit))
        });
        this.as_ref().map_err(Clone::clone)
    }

    /// Links an object and gives the address of a symbol of it. An object that cannot be linked leaves nothing behind.
    pub(super) fn link(&self, object: &[u8], symbol: &str) -> Result<*const c_void, String> {
        let symbol = c_string(symbol)?;
        let mut address = 0;
        // SAFETY: the linker is live to the end of the process, and so is its library; it takes the buffer, whatever it
        // returns; the tracker is released once, after its last use.
        unsafe {
            let tracker = LLVMOrcJITDylibCreateResourceTracker(LLVMOrcLLJITGetMainJITDylib(self.0));
            let added = checked(LLVMOrcLLJITAddObjectFileWithRT(self.0, tracker, buffer(object)));
            let linked = added.and_then(|()| checked(LLVMOrcLLJITLookup(self.0, &raw mut address, symbol.as_ptr())));
            let linked = linked.inspect_err(|_| {
                // The first error is the one that counts.
                let _ = checked(LLVMOrcResourceTrackerRemove(tracker));
            });
            LLVMOrcReleaseResourceTracker(tracker);
            linked?;
        }
        let address = address as usize as *const c_void;
        if address.is_null() { Err("a symbol without an address".into()) } else { Ok(address) }
    }
}

/// A module in a context of its own.
struct Module {
    context: LLVMContextRef,
    module: LLVMModuleRef,
}

impl Module {
    fn parse(text: &str) -> Result<Self, String> {
        let (mut module, mut error) = (null_mut(), null_mut());
        // SAFETY: context and buffer are fresh, parsing does not keep the buffer, and whatever is not returned is freed.
        unsafe {
            let context = LLVMContextCreate();
            let buffer = buffer(text.as_bytes());
            let failed = LLVMParseIRInContext2(context, buffer, &raw mut module, &raw mut error) != 0;
            LLVMDisposeMemoryBuffer(buffer);
            if failed {
                LLVMContextDispose(context);
                return Err(message(error));
            }
            Ok(Self { context, module })
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: both are its own; the module goes before its context.
        unsafe {
            LLVMDisposeModule(self.module);
            LLVMContextDispose(self.context);
        }
    }
}

struct TargetMachine(LLVMTargetMachineRef);

impl Drop for TargetMachine {
    fn drop(&mut self) {
        // SAFETY: it is its own.
        unsafe { LLVMDisposeTargetMachine(self.0) }
    }
}

/// A copy of bytes that is LLVM's.
fn buffer(bytes: &[u8]) -> LLVMMemoryBufferRef {
    // SAFETY: the bytes are read for their length, and copied.
    unsafe { LLVMCreateMemoryBufferWithMemoryRangeCopy(bytes.as_ptr().cast(), bytes.len(), c"kernel".as_ptr()) }
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("a zero in {text:?}"))
}

/// What a message of LLVM's says, which is freed.
///
/// # Safety
/// It must be a string of LLVM's that is the caller's to free.
unsafe fn message(text: *mut c_char) -> String {
    // SAFETY: as promised.
    unsafe {
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        LLVMDisposeMessage(text);
        owned
    }
}

/// An error of LLVM's as a value.
///
/// # Safety
/// It must be null or an error that nobody has taken yet.
unsafe fn checked(error: LLVMErrorRef) -> Result<(), String> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: as promised; taking the message takes the error.
    unsafe {
        let text = LLVMGetErrorMessage(error);
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        LLVMDisposeErrorMessage(text);
        Err(owned)
    }
}
