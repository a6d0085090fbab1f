//! Our PJRT structs against the C compiler's view of a real header.

use std::{collections::BTreeMap, fs, process::Command};

use gemma_pjrt::pjrt::{ABI_SLOT_NAMES, abi_layouts};

/// Fields that came after the header's API (0.81). None so far: what we use is older.
const NEWER: [&str; 0] = [];

#[test]
fn every_offset_is_that_of_the_header() {
    let header = super::data("pjrt_c_api.h");
    let dir = tempfile::tempdir().unwrap();
    let mut code = format!("#include <stdio.h>\n#include <stddef.h>\n#include {:?}\nint main(void) {{\n", header);
    let mut ours = BTreeMap::new();
    for layout in abi_layouts() {
        let kind = format!("struct {}", layout.c_name);
        for (field, offset) in layout.fields {
            // Raw identifiers, and the one union, which is anonymous in C.
            let field = field.trim_start_matches("r#");
            let c_field = if (layout.c_name, field) == ("PJRT_NamedValue", "value") { "int64_value" } else { field };
            let name = format!("{}.{field}", layout.c_name);
            if NEWER.contains(&name.as_str()) {
                continue;
            }
            code += &format!("printf(\"{name} %zu\\n\", offsetof({kind}, {c_field}));\n");
            ours.insert(name, *offset);
        }
        // Elements of arrays: their size is the stride.
        if ["PJRT_NamedValue", "PJRT_ShapeSpec"].contains(&layout.c_name) {
            code += &format!("printf(\"{0} %zu\\n\", sizeof({kind}));\n", layout.c_name);
            ours.insert(layout.c_name.to_owned(), layout.size);
        }
    }
    for (index, slot) in ABI_SLOT_NAMES.iter().enumerate() {
        code += &format!("printf(\"PJRT_Api.{slot} %zu\\n\", offsetof(PJRT_Api, PJRT_{slot}));\n");
        ours.insert(format!("PJRT_Api.{slot}"), 40 + 8 * index);
    }
    code += "return 0; }\n";
    let (source, program) = (dir.path().join("offsets.c"), dir.path().join("offsets"));
    fs::write(&source, code).unwrap();
    let compiled = Command::new("cc").args(["-w", "-o"]).arg(&program).arg(&source).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let output = Command::new(&program).output().unwrap();
    let theirs: BTreeMap<String, usize> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| {
            let (name, offset) = line.split_once(' ').unwrap();
            (name.to_owned(), offset.parse().unwrap())
        })
        .collect();
    assert!(ours.len() > 300, "only {} offsets were compared", ours.len());
    assert_eq!(ours, theirs);
}
