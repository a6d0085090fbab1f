//! Datasets on disk, in the layouts of the Hugging Face hub: parquet or JSON lines, by
//! configuration and split.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{Error, Result};

/// A row of a dataset.
pub type Doc = Map<String, Value>;

/// Returns a digest by which two lists of rows can be compared.
pub fn digest(docs: &[Doc]) -> String {
    let mut digest = Sha256::new();
    docs.iter().for_each(|doc| digest.update(format!("{doc:?}")));
    format!("{:x}", digest.finalize())
}

/// A dataset on disk.
pub struct Dataset {
    dir: PathBuf,
    name: String,
    config: Option<String>,
}

impl Dataset {
    /// Finds the dataset `org/name` below `root`: as `org/name`, `name`, or in the layout of the
    /// hub's cache.
    ///
    /// # Errors
    /// It is not there. The message says how to get it.
    pub fn open(root: &Path, name: &str, config: Option<&str>) -> Result<Self> {
        let short = name.rsplit('/').next().unwrap_or(name);
        let cached = root.join(format!("datasets--{}/snapshots", name.replace('/', "--")));
        let snapshots = fs::read_dir(cached).into_iter().flatten().flatten().map(|entry| entry.path());
        let candidates = [root.join(name), root.join(short)].into_iter().chain(snapshots);
        let dir = candidates.into_iter().find(|dir| dir.is_dir()).ok_or_else(|| {
            Error::Invalid(format!(
                "the dataset {name} is not in {}: put it there as {name}/ or {short}/, in the layout of the hub (for example with \
                 `hf download --repo-type dataset {name} --local-dir {name}`)",
                root.display()
            ))
        })?;
        Ok(Self { dir, name: name.to_owned(), config: config.map(str::to_owned) })
    }

    /// Reads all rows of a split, in order.
    ///
    /// # Errors
    /// The split has no files or no rows, or a file cannot be read.
    pub fn split(&self, split: &str) -> Result<Vec<Doc>> {
        let files = self.files(split)?;
        let mut docs = Vec::new();
        for file in &files {
            let found =
                if file.extension().is_some_and(|e| e == "parquet") { read_parquet(file) } else { read_lines(file) };
            docs.extend(found.map_err(|reason| {
                let message = format!("{} cannot be read: {reason}; download it again", file.display());
                Error::Invalid(message)
            })?);
        }
        if docs.is_empty() {
            return Err(Error::Invalid(format!("the split {split} of {} has no rows", self.name)));
        }
        Ok(docs)
    }

    /// Returns the split's files. Looks for `{config}/{split}-*` and `{config}/{split}/*`, the same
    /// below `data`, and the same without a configuration; then in the only folder that has such
    /// files.
    fn files(&self, split: &str) -> Result<Vec<PathBuf>> {
        let in_folder = |folder: &Path| {
            let mut found = list(folder, |name| belongs_to(name, split));
            found.extend(list(&folder.join(split), |_| true));
            found.sort();
            found
        };
        let folders = match &self.config {
            Some(config) => vec![self.dir.join(config), self.dir.join("data").join(config)],
            None => vec![self.dir.join("data"), self.dir.clone(), self.dir.join("default")],
        };
        if let Some(found) = folders.iter().map(|folder| in_folder(folder)).find(|found| !found.is_empty()) {
            return Ok(found);
        }
        if self.config.is_none() {
            let below = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path());
            let found: Vec<Vec<PathBuf>> = below.map(|dir| in_folder(&dir)).filter(|found| !found.is_empty()).collect();
            if let [only] = &found[..] {
                return Ok(only.clone());
            }
        }
        let config = self.config.as_ref().map_or(String::new(), |config| format!(" of the configuration {config}"));
        Err(Error::Invalid(format!(
            "{} has no files of the split {split}{config}: expected such as {}",
            self.dir.display(),
            Path::new(self.config.as_deref().unwrap_or("data"))
                .join(format!("{split}-00000-of-00001.parquet"))
                .display()
        )))
    }
}

fn list(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_data = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let known = path.extension().is_some_and(|e| ["parquet", "jsonl", "json"].iter().any(|known| e == *known));
        known && path.is_file() && wanted(name)
    };
    entries.map(|entry| entry.path()).filter(is_data).collect()
}

/// Returns whether a file is of this split: `split.ext`, `split-00000-of-00001.ext` or
/// `split_0.ext`.
fn belongs_to(name: &str, split: &str) -> bool {
    name.strip_prefix(split).is_some_and(|rest| rest.starts_with(['.', '-', '_']))
}

fn read_parquet(path: &Path) -> std::result::Result<Vec<Doc>, String> {
    let explain = |e: parquet::errors::ParquetError| e.to_string();
    let reader = SerializedFileReader::new(File::open(path).map_err(|e| e.to_string())?).map_err(explain)?;
    let rows = reader.get_row_iter(None).map_err(explain)?;
    let doc = |row: std::result::Result<parquet::record::Row, _>| match row.map_err(explain)?.to_json_value() {
        Value::Object(doc) => Ok(doc),
        other => Err(format!("a row is {other}")),
    };
    rows.map(doc).collect()
}

fn read_lines(path: &Path) -> std::result::Result<Vec<Doc>, String> {
    let text = fs::read_to_string(path).map_err(|e| e.to_string())?;
    let doc = |(i, line): (usize, &str)| serde_json::from_str(line).map_err(|e| format!("line {}: {e}", i + 1));
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(doc).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hubs_layouts_are_found() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "{\"x\": 1}\n").unwrap();
        };
        let rows = |name: &str, config: Option<&str>| {
            Dataset::open(root.path(), name, config).and_then(|d| d.split("test")).map(|rows| rows.len())
        };
        put("org/a/data/test-00000-of-00002.jsonl");
        put("org/a/data/test-00001-of-00002.jsonl");
        put("org/a/data/train.jsonl");
        put("b/b/test-00000-of-00001-abc.jsonl"); // one configuration, which need not be named
        put("c/one/test/0000.jsonl");
        put("c/two/test/0000.jsonl");
        put("datasets--org--d/snapshots/123/data/two/test.jsonl");
        assert_eq!(rows("org/a", None).unwrap(), 2);
        assert_eq!(rows("org/b", None).unwrap(), 1);
        assert_eq!(rows("org/c", Some("two")).unwrap(), 1);
        assert_eq!(rows("org/d", Some("two")).unwrap(), 1);
        assert!(rows("org/c", None).unwrap_err().to_string().contains("no files of the split test"));
        assert!(rows("org/e", None).unwrap_err().to_string().contains("org/e is not in"));
    }
}
