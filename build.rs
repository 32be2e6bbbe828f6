//! Has the linker put the functions of `src/cpython/ways_in.rs` around the interpreter's, where they are needed.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // The reactor knows of it, and is built without a Python, too.
    println!("cargo:rustc-check-cfg=cfg(Py_GIL_DISABLED)");
    #[cfg(feature = "python")]
    python::main();
}

#[cfg(feature = "python")]
mod python {
    use std::env;

    const WAYS_IN: &str = "src/cpython/ways_in.rs";

    pub fn main() {
        pyo3_build_config::use_pyo3_cfgs();
        println!("cargo:rerun-if-changed={WAYS_IN}");
        println!("cargo:rustc-check-cfg=cfg(guards_ways_in)");
        let is = |variable: &str, value: &str| env::var(variable).is_ok_and(|set| set == value);
        // Only glibc unwinds the stack of a thread that ends itself, and only until 3.14 does the interpreter end threads.
        let ends_threads =
            pyo3_build_config::get().version() < pyo3_build_config::PythonVersion { major: 3, minor: 14 };
        let checks = is("PROFILE", "debug");
        let guards = is("CARGO_CFG_TARGET_OS", "linux")
            && is("CARGO_CFG_TARGET_ENV", "gnu")
            && (ends_threads || checks);
        if !guards {
            return;
        }
        println!("cargo:rustc-cfg=guards_ways_in");
        for name in ["_Py_Dealloc", "_Py_DecRef", "PyVectorcall_Function"] {
            println!("cargo:rustc-link-arg-cdylib=-Wl,--wrap={name}");
        }
        for line in include_str!("src/cpython/ways_in.rs").lines() {
            if let Some(name) = line.strip_prefix("    fn ").and_then(|line| line.split('(').next()) {
                println!("cargo:rustc-link-arg-cdylib=-Wl,--wrap={name}");
            }
        }
    }
}
