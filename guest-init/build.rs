//! /init never unwinds: it does without the tables for that, which would be an eighth of it.

fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rustc-link-arg-bin=init=-T{directory}/init.ld");
    println!("cargo::rerun-if-changed=init.ld");
}
