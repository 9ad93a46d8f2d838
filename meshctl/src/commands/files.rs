//! `-f FILE|DIR|-`.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use archipelago_model::document::Document;

use crate::exit::{Failure, Outcome};

/// Reads files, the resource files of directories, and stdin, in the order given.
///
/// # Errors
/// A file that cannot be read, is too large, or is not text; a directory without resource files.
pub(super) fn read(paths: &[PathBuf]) -> Outcome<Vec<Document>> {
    let mut documents = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            documents.push(document("stdin".to_owned(), io::stdin().lock())?);
        } else if path.is_dir() {
            let files = directory(path)?;
            if files.is_empty() {
                return Err(Failure::refused(format!("{} has no .yaml, .yml or .json file", path.display())));
            }
            for file in files {
                documents.push(open(&file)?);
            }
        } else {
            documents.push(open(path)?);
        }
    }
    Ok(documents)
}

/// The last so many bytes of a file, as text.
pub(super) fn tail(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes_max)))?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn open(path: &Path) -> Outcome<Document> {
    let file = fs::File::open(path).map_err(|error| unreadable(path.display(), &error))?;
    document(path.display().to_string(), file)
}

fn document(name: String, from: impl io::Read) -> Outcome<Document> {
    let mut bytes = Vec::new();
    from.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&name, &error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Failure::refused(format!("{name} is larger than {} MiB", FILE_BYTES_MAX >> 20)));
    }
    Document::from_bytes(name, &bytes).map_err(|problem| super::write::refused(vec![problem.to_string()]))
}

/// Resource files of a directory, sorted, without its subdirectories (as `kubectl apply -f DIR`).
fn directory(path: &Path) -> Outcome<Vec<PathBuf>> {
    let entries = fs::read_dir(path).map_err(|error| unreadable(path.display(), &error))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| unreadable(path.display(), &error))?.path();
        let wanted =
            path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|one| extension == *one));
        if wanted && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn unreadable(name: impl std::fmt::Display, error: &io::Error) -> Failure {
    Failure::refused(format!("cannot read {name}: {error}"))
}

/// Thousands of resources; below the limit of one gRPC message.
const FILE_BYTES_MAX: u64 = 3 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_its_resource_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yml", "c.json", "notes.txt"] {
            fs::write(dir.path().join(name), "x: 1\n").unwrap();
        }
        fs::create_dir(dir.path().join("d.yaml")).unwrap();
        let names: Vec<_> = read(&[dir.path().to_owned()])
            .unwrap()
            .into_iter()
            .map(|document| document.file.rsplit('/').next().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["a.yml", "b.yaml", "c.json"]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&[dir.path().to_owned()]).unwrap_err().render().contains("no .yaml"));
        let missing = dir.path().join("missing.yaml");
        assert!(read(std::slice::from_ref(&missing)).unwrap_err().render().contains("missing.yaml"));
        let binary = dir.path().join("binary.yaml");
        fs::write(&binary, b"a: \xff").unwrap();
        assert!(read(&[binary]).unwrap_err().render().contains("binary.yaml:1:4"));
        let large = dir.path().join("large.yaml");
        fs::write(&large, vec![b'#'; (FILE_BYTES_MAX + 1) as usize]).unwrap();
        assert!(read(&[large]).unwrap_err().render().contains("larger than 3 MiB"));
    }
}
