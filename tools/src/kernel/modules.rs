//! `machinen-kernel modules`: what /init must load for our features, each module after those that it needs.

use std::path::Path;

use argh::FromArgs;
use machinen_initramfs::error::show_path;
use serde_json::json;

use super::features::Feature;
use super::modinfo::{self, Modinfo, plain_name};
use super::package::{Body, Package};
use super::{broken, check, failed};
use crate::args::plain;
use crate::diagnostic::Diagnostic;
use crate::outdir::Outdir;

/// Name of the list in a directory of modules.
pub const ORDER: &str = "order";
/// Chains of dependencies are shorter.
const MOST_DEPTH: u32 = 64;

/// list the modules that a guest must load, in order; with --out, pack them for machinen-mkinitramfs
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "modules")]
pub struct Args {
    /// print one line of JSON, also for an error
    #[argh(switch)]
    pub json: bool,
    /// for this feature; repeatable (default: all)
    #[argh(option, long = "for")]
    pub only: Vec<String>,
    /// put the modules into this directory, decompressed, with their order, for
    /// machinen-mkinitramfs --modules
    #[argh(option)]
    pub out: Option<String>,
    /// kernel package (.deb), an unpacked one, or /lib/modules/VERSION
    #[argh(positional, arg_name = "KERNEL_PACKAGE|DIR")]
    pub package: String,
}

/// Paths in the order to load them, a line each, or a filled directory.
pub fn run(args: Args) -> Result<String, Diagnostic> {
    let is_chosen = !args.only.is_empty();
    let features = check::select(args.only)?;
    let package = Package::open(Path::new(&plain(args.package)))?;
    let closure = Closure::of(&package, &features)?;
    if let Some(missing) = closure.missing.first().filter(|_| is_chosen) {
        return Err(Diagnostic::new(
            "KERNEL_MODULE_MISSING",
            format!("{}: no module {missing}, and it is not built in", package.name),
        )
        .hint("machinen-kernel check says what to switch on in the kernel's configuration"));
    }
    let out = args.out.map(plain);
    let lines = match &out {
        Some(out) => pack(&closure, Path::new(out))?,
        None => paths(&closure, &package)?,
    };
    if args.json {
        let rows = closure.modules.iter().zip(&lines);
        let modules: Vec<_> = rows.map(|(module, path)| json!({"name": module.name, "path": path})).collect();
        return Ok(format!("{}\n", json!({"modules": modules, "missing": closure.missing, "dir": out})));
    }
    // Not an error without --for: that kernel then lacks the feature.
    for name in &closure.missing {
        eprintln!("machinen-kernel: {}: no module {name}, and it is not built in: left out", package.name);
    }
    Ok(match out {
        Some(_) => String::new(),
        None => lines.iter().map(|path| format!("{path}\n")).collect(),
    })
}

fn paths(closure: &Closure<'_>, package: &Package) -> Result<Vec<String>, Diagnostic> {
    let path = |module: &Module<'_>| match module.body {
        Body::Path(path) => Ok(path.to_string_lossy().into_owned()),
        Body::Bytes(_) => Err(super::usage(format!("{}: its modules have no paths on this host", package.name))
            .hint("unpack them with --out DIR")),
    };
    closure.modules.iter().map(path).collect()
}

/// Fills `out` with the modules, decompressed (the guest's kernel need not be able to), and their order.
pub fn pack(closure: &Closure<'_>, out: &Path) -> Result<Vec<String>, Diagnostic> {
    let is_ours = |old: &Path| old.join(ORDER).is_file();
    let dir = Outdir::create(out, is_ours).map_err(failed("make directory", out))?;
    let paths = fill(closure, dir.partial(), out)?;
    dir.commit().map_err(failed("replace", out))?;
    Ok(paths)
}

/// Writes modules and order into `dir`; returns the paths that they have once it is `out`.
pub fn fill(closure: &Closure<'_>, dir: &Path, out: &Path) -> Result<Vec<String>, Diagnostic> {
    let put =
        |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).map_err(failed("write", &dir.join(name)));
    for module in &closure.modules {
        put(&format!("{}.ko", module.name), &module.elf)?;
    }
    put(ORDER, closure.modules.iter().map(|module| format!("{}\n", module.name)).collect::<String>().as_bytes())?;
    Ok(closure.modules.iter().map(|module| show_path(&out.join(format!("{}.ko", module.name)))).collect())
}

/// The modules in a directory that [`pack`] made, in their order. Errors: `KERNEL_HOST`, `KERNEL_BROKEN`.
pub fn packed(dir: &Path) -> Result<Vec<std::path::PathBuf>, Diagnostic> {
    let list = dir.join(ORDER);
    let text = std::fs::read_to_string(&list).map_err(failed("read", &list))?;
    let path = |name: &str| match name {
        "" | "." | ".." => Err(broken(&show_path(&list), "an empty name")),
        name if name.contains('/') => {
            Err(broken(&show_path(&list), format_args!("{name} is not the name of a module")))
        }
        name => Ok(dir.join(format!("{name}.ko"))),
    };
    text.lines().map(|line| path(line.trim())).collect()
}

/// A module to load.
#[derive(Debug)]
pub struct Module<'a> {
    /// Its name, with underscores.
    pub name: String,
    /// Its file in the package.
    pub body: &'a Body,
    /// Its code, decompressed.
    pub elf: Vec<u8>,
}

/// Modules, each after those that it needs.
#[derive(Debug)]
pub struct Closure<'a> {
    package: &'a Package,
    /// In the order to load them.
    pub modules: Vec<Module<'a>>,
    /// Modules of the features that are neither there nor built in.
    pub missing: Vec<String>,
    seen: std::collections::HashSet<String>,
}

impl<'a> Closure<'a> {
    /// What the features need. Errors: `KERNEL_BROKEN`, `KERNEL_HOST`, `KERNEL_MODULE_MISSING` when a module needs one that is not there.
    ///
    /// Read from the modules themselves (`depends=`, `softdep=`), which is what depmod(8) makes modules.dep from: so
    /// it works for a package in which nobody has run it.
    pub fn of(package: &'a Package, features: &[&Feature]) -> Result<Closure<'a>, Diagnostic> {
        let mut closure = Closure { package, modules: vec![], missing: vec![], seen: Default::default() };
        for name in features.iter().flat_map(|feature| feature.modules) {
            let (name, optional) = name.strip_suffix('?').map_or((*name, false), |name| (name, true));
            let name = plain_name(name);
            if closure.has(&name) {
                closure.add(&name, 0)?;
            } else if !optional && !closure.missing.contains(&name) {
                closure.missing.push(name);
            }
        }
        Ok(closure)
    }

    fn has(&self, name: &str) -> bool {
        self.package.builtin.contains(name) || self.package.modules.contains_key(name)
    }

    /// Adds what `name` needs, then `name`, each once.
    fn add(&mut self, name: &str, depth: u32) -> Result<(), Diagnostic> {
        if self.package.builtin.contains(name) || !self.seen.insert(name.to_string()) {
            return Ok(());
        }
        let Some(body) = self.package.modules.get(name) else {
            let message = format!("{}: no module {name}, which another needs", self.package.name);
            return Err(Diagnostic::new("KERNEL_MODULE_MISSING", message).hint("is the package complete?"));
        };
        let fault = |why: String| broken(&self.package.name, format_args!("module {name}: {why}"));
        if depth > MOST_DEPTH {
            return Err(fault("its dependencies are too deep".into()));
        }
        let elf =
            body.read().and_then(|bytes| modinfo::decompress(&bytes)).map_err(|cause| fault(cause.to_string()))?;
        let Modinfo { depends, before, after } = modinfo::parse(&elf).ok_or_else(|| fault("not a module".into()))?;
        for soft in before.iter().filter(|soft| self.has(soft)).cloned().collect::<Vec<_>>() {
            self.add(&soft, depth + 1)?;
        }
        for other in &depends {
            self.add(other, depth + 1)?;
        }
        self.modules.push(Module { name: name.to_string(), body, elf });
        for soft in after.iter().filter(|soft| self.has(soft)).cloned().collect::<Vec<_>>() {
            self.add(&soft, depth + 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::features;

    fn package(modules: &[(&str, &str)], builtin: &[&str]) -> Package {
        let module = |strings: &str| Body::Bytes(format!("\x7fELF\0{}\0", strings.replace(' ', "\0")).into_bytes());
        Package {
            name: "test".into(),
            modules: modules.iter().map(|(name, strings)| (name.to_string(), module(strings))).collect(),
            builtin: builtin.iter().map(ToString::to_string).collect(),
            kernel: None,
        }
    }

    fn order(package: &Package, feature: &str) -> Result<(Vec<String>, Vec<String>), Diagnostic> {
        let closure = Closure::of(package, &[features::find(feature).expect("there")])?;
        Ok((closure.modules.into_iter().map(|module| module.name).collect(), closure.missing))
    }

    #[test]
    fn each_module_comes_after_what_it_needs() {
        let package = package(
            &[
                ("virtio_blk", "depends=virtio,virtio_ring"),
                ("virtio_ring", "depends=virtio"),
                ("virtio", "depends="),
                ("ext4", "softdep=pre:\u{20}crc32c depends=jbd2,mbcache"),
                ("jbd2", "depends="),
            ],
            &["mbcache"],
        );
        let (names, missing) = order(&package, "disk").expect("whole");
        assert_eq!(names, ["virtio", "virtio_ring", "virtio_blk", "jbd2", "ext4"]);
        assert!(missing.is_empty());
    }

    #[test]
    fn soft_dependencies_are_loaded_where_they_exist() {
        let mut package = package(&[("crc32c_intel", "depends="), ("late", "depends=virtio_net")], &[]);
        let strings = b"\x7fELF\0depends=\0softdep=pre: gone crc32c-intel post: late\0".to_vec();
        package.modules.insert("virtio_net".into(), Body::Bytes(strings));
        assert_eq!(order(&package, "net").expect("whole").0, ["crc32c_intel", "virtio_net", "late"]);
    }

    #[test]
    fn a_cycle_ends_and_a_gap_is_named() {
        let cycle = package(&[("virtio_net", "depends=a"), ("a", "depends=virtio_net")], &[]);
        assert_eq!(order(&cycle, "net").expect("ends").0, ["a", "virtio_net"]);
        let gap = package(&[("virtio_net", "depends=failover")], &[]);
        let error = order(&gap, "net").expect_err("refused");
        assert_eq!(error.code, "KERNEL_MODULE_MISSING");
        assert!(error.message.contains("no module failover"), "{}", error.message);
        assert_eq!(order(&gap, "vsock").expect("nothing").1, ["vmw_vsock_virtio_transport"]);
        let broken = package(&[("virtio_net", "no=info")], &[]);
        assert_eq!(order(&broken, "net").expect_err("refused").code, "KERNEL_BROKEN");
    }
}
