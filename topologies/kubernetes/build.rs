//! Embeds every file of the chart's `templates` and of `crds`, so that a new one needs no mention anywhere.

use std::{env, fs, io, path::Path};

fn main() -> io::Result<()> {
    let root = env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?;
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    let mut code = String::new();
    for (name, dir, suffixes) in [("TEMPLATES", "chart/templates", ["yaml", "tpl"]), ("CRDS", "crds", ["yaml", "yml"])]
    {
        println!("cargo:rerun-if-changed={dir}");
        let dir = Path::new(&root).join(dir);
        let mut files = Vec::new();
        if dir.is_dir() {
            for entry in fs::read_dir(&dir)? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| suffixes.iter().any(|suffix| extension == *suffix)) {
                    files.push(path);
                }
            }
        }
        files.sort();
        code.push_str(&format!("const {name}: &[(&str, &str)] = &[\n"));
        for file in files {
            println!("cargo:rerun-if-changed={}", file.display());
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            code.push_str(&format!("    ({name:?}, include_str!({:?})),\n", file.display().to_string()));
        }
        code.push_str("];\n");
    }
    fs::write(Path::new(&out).join("files.rs"), code)
}
