//! Leaves out of the program what only unwinding needs, and with panic = "abort" nothing unwinds: 68 KiB.
//!
//! The compiler could leave most of it out itself (-C force-unwind-tables=no), but not for one profile: tests do unwind.

use std::path::Path;

const SCRIPT: &str =
    "SECTIONS { /DISCARD/ : { *(.eh_frame) *(.gcc_except_table .gcc_except_table.*) } } INSERT AFTER .text;\n";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Other targets' linkers are called by a compiler, which wants other words.
    if std::env::var("CARGO_CFG_TARGET_ENV").as_deref() != Ok("musl") {
        return;
    }
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    let script = Path::new(&out).join("no-unwind.ld");
    std::fs::write(&script, SCRIPT).expect("cargo makes the directory");
    println!("cargo::rustc-link-arg-bins=--no-eh-frame-hdr");
    println!("cargo::rustc-link-arg-bins=-T{}", script.display());
}
