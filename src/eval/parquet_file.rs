//! Parquet files. The parquet crate takes the sizes that a file claims at their word: it allocates
//! what they say, which ends the process where memory is short, goes down as deep as a schema does,
//! and makes as many rows as a row group claims to have. So all of that is checked before.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
    sync::Arc,
};

use bytes::{Buf, Bytes};
use parquet::{
    basic::{Compression, Encoding, Type},
    column::page::Page,
    errors::ParquetError,
    file::{
        metadata::{ColumnChunkMetaData, ParquetMetaData},
        reader::{ChunkReader, FileReader, Length, SerializedFileReader, SerializedPageReader},
    },
};
use serde_json::{Map, Value};

use super::thrift::{
    Input,
    Shape::{self, Bool, Byte, Float, Int, List, Struct as Fields, Text},
    Struct,
};

/// How deep a schema may be: as deep as `serde_json` reads JSON.
const DEPTH: usize = 128;

/// The digits that a decimal may have after its point. Arrow's widest type has as many in all.
const SCALE: i32 = 76;

/// A page may be this large, or [`GROWTH`] times its size in the file if that is more. The crate
/// allocates a page before it finds out whether its contents are there.
const PAGE: u64 = 128 << 20;

/// How many times its size in the file a page may have: deflate's largest ratio, about.
const GROWTH: u64 = 1024;

/// A file may have this many values, or [`VALUES_A_BYTE`] for each of its bytes if that is more.
/// Some bytes can stand for billions of equal ones.
const VALUES: u64 = 1 << 18;
const VALUES_A_BYTE: u64 = 64;

/// The texts of all rows may have this many bytes, or [`GROWTH`] times the file's if that is more.
/// A dictionary holds a text once for all rows that have it.
const TEXTS: u64 = 256 << 20;

/// Reads all rows of a file.
///
/// # Errors
/// The file cannot be read, or makes no sense.
///
/// # Panics
/// Where the parquet crate does, on damaged files.
pub fn parquet_rows(path: &Path) -> Result<Vec<Map<String, Value>>, String> {
    let explain = |e: ParquetError| e.to_string();
    let file = ParquetFile(Arc::new(File::open(path).map_err(|e| e.to_string())?));
    check_schema(&file)?;
    let reader = SerializedFileReader::new(file.clone()).map_err(explain)?;
    check_columns(&file, reader.metadata())?;
    let mut left = TEXTS.max(file.len().saturating_mul(GROWTH));
    let mut doc = |row: Result<parquet::record::Row, _>| {
        let row = row.map_err(explain)?.to_json_value();
        let Some(rest) = left.checked_sub(texts(&row)) else {
            return Err(format!("the texts of its {} bytes are too long", file.len()));
        };
        left = rest;
        match row {
            Value::Object(doc) => Ok(doc),
            other => Err(format!("a row is {other}")),
        }
    };
    reader.get_row_iter(None).map_err(explain)?.map(&mut doc).collect()
}

/// Returns how many bytes the texts of a value have.
fn texts(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(values) => values.iter().map(texts).sum(),
        Value::Object(fields) => fields.values().map(texts).sum(),
        _ => 0,
    }
}

/// A file whose end is an error. The parquet crate would go through a list that is said to have
/// billions of elements, although the file ends, and allocate as many bytes as a file claims to
/// have.
#[derive(Clone)]
struct ParquetFile(Arc<File>);

impl Length for ParquetFile {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl ChunkReader for ParquetFile {
    type T = UntilEnd<BufReader<File>>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        self.0.get_read(start).map(UntilEnd)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.len()) {
            let problem = format!("it names {length} bytes from byte {start} on, and has {}", self.len());
            return Err(ParquetError::EOF(problem));
        }
        self.0.get_bytes(start, length)
    }
}

/// A reader that fails at its end.
struct UntilEnd<R>(R);

impl<R: Read> Read for UntilEnd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 if !buffer.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        }
    }
}

/// Checks what the crate makes of a schema before it can be asked about it: it goes down into the
/// groups by recursion, and allocates as many children as one claims to have.
fn check_schema(file: &ParquetFile) -> Result<(), String> {
    // A file ends with its footer, the footer's length in four bytes, and PAR1. What is wrong with
    // another end, the crate says.
    let Some(tail) = file.len().checked_sub(8) else { return Ok(()) };
    let mut end = file.get_bytes(tail, 8).map_err(|e| e.to_string())?;
    let Some(start) = tail.checked_sub(end.get_u32_le().into()).filter(|_| *end == *b"PAR1") else { return Ok(()) };
    let (footer, _) = read_header(file, start, FOOTER)?;
    let elements = footer.structures(2)?;
    // The children that each group on the way to an element still lacks.
    let mut open: Vec<usize> = vec![];
    for element in &elements {
        while open.pop_if(|lacking| *lacking == 0).is_some() {}
        if let Some(lacking) = open.last_mut() {
            *lacking -= 1;
        }
        let children = element.int(5)?.unwrap_or(0);
        match usize::try_from(children) {
            Ok(0) => {}
            Ok(children) if children < elements.len() => open.push(children),
            _ => return Err(format!("a group of its schema has {children} columns, of {} elements", elements.len())),
        }
        if open.len() > DEPTH {
            return Err(format!("its schema is deeper than {DEPTH} groups"));
        }
    }
    Ok(())
}

/// Checks that the row groups have the values for the rows that they claim, and that their pages
/// can have the sizes that they claim.
fn check_columns(file: &ParquetFile, metadata: &ParquetMetaData) -> Result<(), String> {
    let most = VALUES.max(file.len().saturating_mul(VALUES_A_BYTE));
    let mut all = 0;
    for group in metadata.row_groups() {
        let rows = u64::try_from(group.num_rows()).map_err(|_| format!("a row group has {} rows", group.num_rows()))?;
        if rows > 0 && group.columns().is_empty() {
            return Err(format!("a row group has {rows} rows, and no columns"));
        }
        for column in group.columns() {
            let (name, scale) = (column.column_descr().name(), column.column_descr().type_scale());
            if scale > SCALE {
                return Err(format!("the column {name} has {scale} digits after the point, and {SCALE} can be read"));
            }
            let values = check_pages(file, column).map_err(|problem| format!("the column {name}: {problem}"))?;
            if values < rows {
                return Err(format!("a row group has {rows} rows, and its column {name} {values} values"));
            }
            all += values;
            if all > most {
                return Err(format!("{} bytes claim to hold {all} values, and {most} can be read", file.len()));
            }
        }
    }
    Ok(())
}

/// Checks the pages of a column, and returns how many values they have.
fn check_pages(file: &ParquetFile, column: &ColumnChunkMetaData) -> Result<u64, String> {
    let (mut start, mut left) = column.byte_range();
    let (mut values, mut has_deltas) = (0, false);
    while left > 0 {
        let (header, length) = read_header(file, start, PAGE_HEADER)?;
        let size = |field| {
            let size = header.int(field)?.ok_or("a page has no size")?;
            u64::try_from(size).map_err(|_| format!("a page has {size} bytes"))
        };
        let (whole, stored) = (size(2)?, size(3)?);
        if whole > PAGE.max(stored * GROWTH) {
            return Err(format!("a page of {stored} bytes claims to have {whole} of them uncompressed"));
        }
        left = left.checked_sub(length + stored).ok_or("a page leaves the column")?;
        start += length + stored;
        // The fields of data pages, of dictionaries, and of data pages of the second version.
        let kinds = [(0, 5, 2), (2, 7, 2), (3, 8, 4)];
        for (kind, field, encoding) in kinds {
            let Some(page) = header.structure(field)? else { continue };
            if header.int(1)? != Some(kind) {
                return Err("a page has the header of another".into());
            }
            let count = page.int(1)?.unwrap_or(0);
            let count = u64::try_from(count).map_err(|_| format!("a page has {count} values"))?;
            if kind == 2 {
                let held = if column.compression() == Compression::UNCOMPRESSED { stored } else { whole };
                if count * least_size(column) > held {
                    return Err(format!("a dictionary of {held} bytes claims to have {count} values"));
                }
            } else {
                let encoding = page.int(encoding)?;
                let deltas = [Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BYTE_ARRAY];
                has_deltas |= deltas.iter().any(|&delta| encoding == Some(delta as i32));
                values += count;
            }
        }
    }
    if has_deltas {
        check_deltas(file, column)?;
    }
    Ok(values)
}

/// Checks the lengths of texts in delta encoding: a page says itself how many it has, and the crate
/// allocates as many.
fn check_deltas(file: &ParquetFile, column: &ColumnChunkMetaData) -> Result<(), String> {
    let pages = SerializedPageReader::new(Arc::new(file.clone()), column, 0, None).map_err(|e| e.to_string())?;
    for page in pages {
        let (values, encoding, data) = match page.map_err(|e| e.to_string())? {
            Page::DataPage { mut buf, num_values, encoding, def_level_encoding, rep_level_encoding, .. } => {
                let (repeated, defined) =
                    (column.column_descr().max_rep_level(), column.column_descr().max_def_level());
                for (level, encoding) in [(repeated, rep_level_encoding), (defined, def_level_encoding)] {
                    let length = match (level, encoding) {
                        (0, _) => 0,
                        (_, Encoding::RLE) => buf.try_get_u32_le().map_err(|e| e.to_string())? as usize,
                        _ => (num_values as usize * (i16::BITS - level.leading_zeros()) as usize).div_ceil(8),
                    };
                    if length > buf.len() {
                        return Err(format!("the levels of a page have {length} bytes, and it has {}", buf.len()));
                    }
                    buf.advance(length);
                }
                (num_values, encoding, buf)
            }
            Page::DataPageV2 { buf, num_values, encoding, def_levels_byte_len, rep_levels_byte_len, .. } => {
                (num_values, encoding, buf.slice(def_levels_byte_len as usize + rep_levels_byte_len as usize..))
            }
            Page::DictionaryPage { .. } => continue,
        };
        // The lengths of the texts, after those of what each shares with the one before it.
        let lists = match encoding {
            Encoding::DELTA_LENGTH_BYTE_ARRAY => 1,
            Encoding::DELTA_BYTE_ARRAY => 2,
            _ => 0,
        };
        let mut input = Input { reader: &data[..], count: 0 };
        for _ in 0..lists {
            let count = skip_deltas(&mut input, values.into()).map_err(|e| format!("lengths of texts: {e}"))?;
            if count > values.into() {
                return Err(format!("a page of {values} values claims to have the lengths of {count}"));
            }
        }
    }
    Ok(())
}

/// Passes over integers in delta encoding, and returns how many there are; if they are more than
/// `most`, right away.
fn skip_deltas(input: &mut Input<&[u8]>, most: u64) -> io::Result<u64> {
    let (block, parts, count, _first) = (input.varint()?, input.varint()?, input.varint()?, input.varint()?);
    let part = block.checked_div(parts).unwrap_or(0);
    let mut left = count.saturating_sub(1);
    while left > 0 && count <= most {
        let _least = input.varint()?;
        let widths: Vec<u8> = (0..parts).map(|_| input.byte()).collect::<Result<_, _>>()?;
        for width in widths {
            if left > 0 {
                input.skip(part.saturating_mul(width.into()) / 8)?;
            }
            left = left.saturating_sub(part);
        }
    }
    Ok(count)
}

/// Reads a header, and returns its length, too.
fn read_header(file: &ParquetFile, start: u64, known: &[(i16, Shape)]) -> Result<(Struct, u64), String> {
    let reader = file.get_read(start).map_err(|e| e.to_string())?;
    Struct::read(reader, known).map_err(|e| format!("the header at byte {start}: {e}"))
}

/// The fields of a footer that the crate reads: those of `FileMetaData` in `parquet.thrift`.
const FOOTER: &[(i16, Shape)] = &[
    (1, Int),
    (2, List(&Fields(SCHEMA_ELEMENT))),
    (3, Int),
    (4, List(&Fields(ROW_GROUP))),
    (5, List(&Fields(&[(1, Text), (2, Text)]))),
    (6, Text),
    (7, List(&Fields(&[(1, EMPTY), (2, EMPTY), (3, EMPTY)]))),
];

const EMPTY: Shape = Fields(&[]);

const SCHEMA_ELEMENT: &[(i16, Shape)] = &[
    (1, Int),
    (2, Int),
    (3, Int),
    (4, Text),
    (5, Int),
    (6, Int),
    (7, Int),
    (8, Int),
    (9, Int),
    (10, Fields(LOGICAL_TYPE)),
];

const LOGICAL_TYPE: &[(i16, Shape)] = &[
    (1, EMPTY),
    (2, EMPTY),
    (3, EMPTY),
    (4, EMPTY),
    (5, Fields(&[(1, Int), (2, Int)])),
    (6, EMPTY),
    (7, Fields(TIME)),
    (8, Fields(TIME)),
    (10, Fields(&[(1, Byte), (2, Bool)])),
    (11, EMPTY),
    (12, EMPTY),
    (13, EMPTY),
    (14, EMPTY),
    (15, EMPTY),
    (16, Fields(&[(1, Byte)])),
    (17, Fields(&[(1, Text)])),
    (18, Fields(&[(1, Text), (2, Int)])),
    (19, EMPTY),
];

const TIME: &[(i16, Shape)] = &[(1, Bool), (2, Fields(&[(1, EMPTY), (2, EMPTY), (3, EMPTY)]))];

const ROW_GROUP: &[(i16, Shape)] = &[
    (1, List(&Fields(COLUMN))),
    (2, Int),
    (3, Int),
    (4, List(&Fields(&[(1, Int), (2, Bool), (3, Bool)]))),
    (5, Int),
    (7, Int),
];

const COLUMN: &[(i16, Shape)] =
    &[(1, Text), (2, Int), (3, Fields(COLUMN_METADATA)), (4, Int), (5, Int), (6, Int), (7, Int)];

const COLUMN_METADATA: &[(i16, Shape)] = &[
    (1, Int),
    (2, List(&Int)),
    (4, Int),
    (5, Int),
    (6, Int),
    (7, Int),
    (9, Int),
    (10, Int),
    (11, Int),
    (12, Fields(STATISTICS)),
    (13, List(&Fields(&[(1, Int), (2, Int), (3, Int)]))),
    (14, Int),
    (15, Int),
    (16, Fields(&[(1, Int), (2, List(&Int)), (3, List(&Int))])),
    (17, Fields(&[(1, Fields(BOX)), (2, List(&Int))])),
];

const STATISTICS: &[(i16, Shape)] =
    &[(1, Text), (2, Text), (3, Int), (4, Int), (5, Text), (6, Text), (7, Bool), (8, Bool), (9, Int)];

const BOX: &[(i16, Shape)] =
    &[(1, Float), (2, Float), (3, Float), (4, Float), (5, Float), (6, Float), (7, Float), (8, Float)];

/// The fields of a page's header that the crate reads: those of `PageHeader`. It passes over the
/// statistics.
const PAGE_HEADER: &[(i16, Shape)] = &[
    (1, Int),
    (2, Int),
    (3, Int),
    (4, Int),
    (5, Fields(&[(1, Int), (2, Int), (3, Int), (4, Int)])),
    (6, EMPTY),
    (7, Fields(&[(1, Int), (2, Int), (3, Bool)])),
    (8, Fields(&[(1, Int), (2, Int), (3, Int), (4, Int), (5, Int), (6, Int), (7, Bool)])),
];

/// The bytes that a value of a dictionary takes at least.
fn least_size(column: &ColumnChunkMetaData) -> u64 {
    match column.column_type() {
        Type::BOOLEAN | Type::FIXED_LEN_BYTE_ARRAY => 1,
        Type::INT32 | Type::FLOAT | Type::BYTE_ARRAY => 4,
        Type::INT64 | Type::DOUBLE => 8,
        Type::INT96 => 12,
    }
}

#[cfg(test)]
mod tests {
    use parquet::{
        data_type::{ByteArray, ByteArrayType, Int64Type},
        file::{
            properties::{WriterProperties, WriterPropertiesBuilder, WriterVersion},
            writer::SerializedFileWriter,
        },
        schema::parser::parse_message_type,
    };
    use serde_json::json;

    use super::*;

    /// Writes a file of one column, and reads its rows.
    fn rows<T: parquet::data_type::DataType>(
        schema: &str,
        properties: WriterPropertiesBuilder,
        values: &[T::T],
        levels: Option<[&[i16]; 2]>,
    ) -> Result<Value, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer =
            SerializedFileWriter::new(file.reopen().unwrap(), schema, Arc::new(properties.build())).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let [defined, repeated] = [0, 1].map(|i| levels.map(|levels| levels[i]));
        column.typed::<T>().write_batch(values, defined, repeated).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        parquet_rows(file.path()).map(|rows| json!(rows))
    }

    #[test]
    fn texts_are_read_in_all_encodings_and_versions() {
        let schema =
            "message rows { optional group x (LIST) { repeated group list { optional binary element (UTF8); } } }";
        let texts: Vec<ByteArray> = (0..600).map(|i| ByteArray::from(&*format!("text {}", i / 7))).collect();
        // Each row is a list of a text, a null and a text.
        let (defined, repeated) = ([3, 2, 3].repeat(300), [0, 1, 1].repeat(300));
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            for encoding in
                [None, Some(Encoding::PLAIN), Some(Encoding::DELTA_LENGTH_BYTE_ARRAY), Some(Encoding::DELTA_BYTE_ARRAY)]
            {
                let properties = WriterProperties::builder()
                    .set_writer_version(version)
                    .set_compression(Compression::SNAPPY)
                    .set_data_page_row_count_limit(100)
                    .set_write_batch_size(100)
                    .set_dictionary_enabled(encoding.is_none());
                let properties = match encoding {
                    Some(encoding) => properties.set_encoding(encoding),
                    None => properties,
                };
                let rows = rows::<ByteArrayType>(schema, properties, &texts, Some([&defined, &repeated])).unwrap();
                assert_eq!(rows.as_array().unwrap().len(), 300, "{version:?} {encoding:?}");
                assert_eq!(rows[299], json!({"x": ["text 85", null, "text 85"]}), "{version:?} {encoding:?}");
            }
        }
    }

    #[test]
    fn schemas_have_a_depth_that_the_stack_bears() {
        let nested = |groups: usize| {
            let (start, end) = ("required group g { ".repeat(groups), "} ".repeat(groups));
            let schema = format!("message rows {{ {start} required int64 x; {end} }}");
            rows::<Int64Type>(&schema, WriterProperties::builder(), &[7], None)
        };
        let mut row = &nested(DEPTH - 1).unwrap()[0];
        for _ in 1..DEPTH {
            row = &row["g"];
        }
        assert_eq!(*row, json!({"x": 7}));
        assert_eq!(nested(DEPTH), Err("its schema is deeper than 128 groups".to_owned()));
    }

    #[test]
    fn as_many_equal_values_are_read_as_a_file_can_stand_for() {
        let count = usize::try_from(VALUES).unwrap();
        let rows_of = |count| {
            rows::<Int64Type>("message r { required int64 x; }", WriterProperties::builder(), &vec![7; count], None)
        };
        assert_eq!(rows_of(count).unwrap()[count - 1], json!({"x": 7}));
        assert!(rows_of(count + 1).unwrap_err().ends_with("bytes claim to hold 262145 values, and 262144 can be read"));
    }
}
