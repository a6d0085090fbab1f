//! Files of rows: parquet, JSON lines, JSON arrays, and tables with commas or tabs; texts also
//! compressed by gzip.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use super::parquet_file::parquet_rows;
use crate::{
    model_file::{is_lfs_pointer, without_mark},
    shield::shielded,
};

/// A row of a dataset.
pub type Doc = Map<String, Value>;

/// The format of a data file, by the end of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FileFormat {
    Parquet,
    /// An object in each line, or an array of them.
    Json {
        gzip: bool,
    },
    /// A table whose first line names the columns.
    Table {
        delimiter: u8,
        gzip: bool,
    },
    /// Any other text: each line is the field `text` of a row.
    Lines,
}

impl FileFormat {
    /// Returns the format of a file, and its name without the format's ending. `None` if it is no
    /// data file.
    pub fn of(name: &str) -> Option<(Self, &str)> {
        let (plain, gzip) = name.strip_suffix(".gz").map_or((name, false), |plain| (plain, true));
        let (stem, ending) = plain.rsplit_once('.')?;
        let format = match ending {
            "parquet" if !gzip => Self::Parquet,
            "jsonl" | "json" => Self::Json { gzip },
            "csv" => Self::Table { delimiter: b',', gzip },
            "tsv" => Self::Table { delimiter: b'\t', gzip },
            _ => return None,
        };
        Some((format, stem))
    }

    /// Reads all rows of a file, in order.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn read(self, path: &Path) -> Result<Vec<Doc>, String> {
        let mut start = Vec::new();
        File::open(path).and_then(|file| file.take(64).read_to_end(&mut start)).map_err(|e| e.to_string())?;
        if is_lfs_pointer(&start) {
            return Err("it is a Git LFS pointer, and git lfs pull gets the file".into());
        }
        match self {
            Self::Parquet => shielded(|| parquet_rows(path)).flatten(),
            Self::Json { gzip } => json_rows(&text(path, gzip)?),
            Self::Table { delimiter, gzip } => table_rows(&text(path, gzip)?, delimiter),
            Self::Lines => {
                Ok(text(path, false)?.lines().filter(|line| !line.trim().is_empty()).map(line_row).collect())
            }
        }
    }
}

/// Returns the text of a file, without a byte order mark.
fn text(path: &Path, gzip: bool) -> Result<String, String> {
    let text = if gzip {
        let mut text = String::new();
        let file = File::open(path).map_err(|e| e.to_string())?;
        MultiGzDecoder::new(file).read_to_string(&mut text).map_err(|e| e.to_string())?;
        text
    } else {
        fs::read_to_string(path).map_err(|e| e.to_string())?
    };
    Ok(without_mark(&text).to_owned())
}

fn line_row(line: &str) -> Doc {
    Doc::from_iter([("text".to_owned(), Value::from(line))])
}

fn json_rows(text: &str) -> Result<Vec<Doc>, String> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).map_err(|e| e.to_string());
    }
    let given = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    given.map(|(i, line)| serde_json::from_str(line).map_err(|e| format!("line {}: {e}", i + 1))).collect()
}

fn table_rows(text: &str, delimiter: u8) -> Result<Vec<Doc>, String> {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(text.as_bytes());
    let names: Vec<String> = reader.headers().map_err(|e| e.to_string())?.iter().map(str::to_owned).collect();
    let records: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    let columns = 0..names.len();
    let kinds: Vec<ColumnKind> = columns.map(|i| ColumnKind::of(records.iter().map(|record| &record[i]))).collect();
    let row = |record: &csv::StringRecord| {
        let fields = names.iter().zip(&kinds).zip(record);
        fields.map(|((name, kind), field)| (name.clone(), kind.value(field))).collect()
    };
    Ok(records.iter().map(row).collect())
}

/// The type of a table's column. As in pandas, it is the narrowest one that all fields have; empty
/// fields are null.
#[derive(Clone, Copy, Debug)]
enum ColumnKind {
    Integer,
    Float,
    Bool,
    Text,
}

impl ColumnKind {
    fn of<'r>(fields: impl Iterator<Item = &'r str> + Clone) -> Self {
        let narrower = [Self::Integer, Self::Float, Self::Bool];
        let has_all = |kind: &Self| fields.clone().all(|field| field.is_empty() || kind.parse(field).is_some());
        narrower.into_iter().find(has_all).unwrap_or(Self::Text)
    }

    fn parse(self, field: &str) -> Option<Value> {
        match self {
            Self::Integer => field.parse::<i64>().ok().map(Value::from),
            Self::Float => field.parse().ok().filter(|number: &f64| number.is_finite()).map(Value::from),
            Self::Bool => match field {
                "True" | "TRUE" | "true" => Some(true.into()),
                "False" | "FALSE" | "false" => Some(false.into()),
                _ => None,
            },
            Self::Text => Some(field.into()),
        }
    }

    fn value(self, field: &str) -> Value {
        if field.is_empty() { Value::Null } else { self.parse(field).unwrap_or_default() }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::Arc};

    use flate2::write::GzEncoder;
    use parquet::{
        basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel},
        data_type::Int64Type,
        file::{properties::WriterProperties, writer::SerializedFileWriter},
        schema::parser::parse_message_type,
    };
    use serde_json::json;

    use super::*;

    fn rows(name: &str, bytes: &[u8]) -> Result<Value, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        FileFormat::of(name).unwrap().0.read(&path).map(|rows| json!(rows))
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(vec![], flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn json_files_hold_lines_or_one_array() {
        let both = json!([{"x": 1}, {"x": [2]}]);
        for text in [
            "{\"x\": 1}\r\n\r\n{\"x\": [2]}\r\n",
            "\u{feff}{\"x\": 1}\n{\"x\": [2]}",
            " [{\"x\": 1},\n {\"x\": [2]}]\n",
        ] {
            for name in ["a.json", "a.jsonl"] {
                assert_eq!(rows(name, text.as_bytes()).unwrap(), both, "{text:?}");
                assert_eq!(rows(&format!("{name}.gz"), &gzip(text)).unwrap(), both, "{text:?}");
            }
        }
        assert_eq!(rows("a.jsonl.gz", &[gzip("{\"x\": 1}\n"), gzip("{\"x\": [2]}\n")].concat()).unwrap(), both);
        assert!(rows("a.jsonl", b"{\"x\": 1}\n{\"x\": \n").unwrap_err().contains("line 2: EOF"));
        assert!(rows("a.jsonl", b"{\"x\": 1}\n3\n").unwrap_err().contains("line 2: "));
    }

    #[test]
    fn columns_of_tables_have_types() {
        let table = "\u{feff}n,f,b,t,e\r\n1,1,True,\"a, \"\"b\"\"\nc\",\r\n-2,2.5,False,3,\r\n,,,,\r\n";
        let wanted = json!([
            {"n": 1, "f": 1.0, "b": true, "t": "a, \"b\"\nc", "e": null},
            {"n": -2, "f": 2.5, "b": false, "t": "3", "e": null},
            {"n": null, "f": null, "b": null, "t": null, "e": null},
        ]);
        assert_eq!(rows("a.csv", table.as_bytes()).unwrap(), wanted);
        assert_eq!(rows("a.csv.gz", &gzip(table)).unwrap(), wanted);
        assert_eq!(rows("a.tsv", b"x\ty\n1\tnan\n").unwrap(), json!([{"x": 1, "y": "nan"}]));
        assert!(rows("a.csv", b"x,y\n1\n").unwrap_err().contains("line: 2"));
    }

    #[test]
    fn parquet_is_read_however_it_is_compressed() {
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(GzipLevel::default()),
            Compression::BROTLI(BrotliLevel::default()),
            Compression::LZ4,
            Compression::LZ4_RAW,
            Compression::ZSTD(ZstdLevel::default()),
        ] {
            let schema = Arc::new(parse_message_type("message rows { required int64 x; }").unwrap());
            let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
            let mut bytes = vec![];
            let mut writer = SerializedFileWriter::new(&mut bytes, schema, properties).unwrap();
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(&[7; 1000], None, None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
            writer.close().unwrap();
            let rows = rows("a.parquet", &bytes).unwrap();
            assert_eq!((rows.as_array().unwrap().len(), &rows[999]), (1000, &json!({"x": 7})), "{compression:?}");
        }
    }

    #[test]
    fn formats_are_known_by_the_names_end() {
        assert_eq!(FileFormat::of("a.b.json.gz"), Some((FileFormat::Json { gzip: true }, "a.b")));
        for other in ["a.txt", "a.parquet.gz", "json", "README.md", "a.gz"] {
            assert_eq!(FileFormat::of(other), None, "{other}");
        }
    }
}
