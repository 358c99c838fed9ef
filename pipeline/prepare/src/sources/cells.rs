//! Parquet cells with lists and structs: as JSON where they are text, as images where they hold files or names.

use polars::datatypes::ArrowDataType;
use polars::prelude::AnyValue;
use serde_json::{Map, Value};
use vela_types::ImageRef;

use super::Fault;
use super::fields::Place;

/// Text, numbers, lists and structs as JSON; binary and other types become null.
pub(super) fn to_json(cell: &AnyValue<'_>) -> Value {
    match cell.clone().into_static() {
        AnyValue::Boolean(flag) => flag.into(),
        AnyValue::StringOwned(text) => text.as_str().into(),
        AnyValue::List(items) => items.iter().map(|item| to_json(&item)).collect(),
        AnyValue::StructOwned(parts) => {
            let (values, fields) = *parts;
            let entry =
                |(field, value): (&polars::prelude::Field, &AnyValue<'_>)| (field.name.to_string(), to_json(value));
            Value::Object(fields.iter().zip(&values).map(entry).collect::<Map<_, _>>())
        }
        cell if cell.is_integer() => cell.try_extract::<i64>().map_or(Value::Null, Value::from),
        cell if cell.is_float() => cell.try_extract::<f64>().map_or(Value::Null, Value::from),
        _ => Value::Null,
    }
}

/// The images of a cell: a file's bytes, a name, the struct `{bytes, path}` of Hugging Face data sets, or a list of those.
pub(super) fn images(cell: &AnyValue<'_>, column: &str, place: &Place<'_>) -> Result<Vec<ImageRef>, Fault> {
    match cell.clone().into_static() {
        AnyValue::Null => Ok(vec![]),
        AnyValue::List(items) => items
            .iter()
            .enumerate()
            .map(|(at, item)| image(&item.into_static(), &format!("{column}[{at}]"), place))
            .collect(),
        one => Ok(vec![image(&one, column, place)?]),
    }
}

/// The names in a cell of [`images`], of those that are not in the cell themselves.
pub(super) fn image_names(cell: &AnyValue<'_>) -> Vec<String> {
    match cell {
        AnyValue::List(items) => items.iter().flat_map(|item| image_names(&item)).collect(),
        AnyValue::String(name) => vec![(*name).to_owned()],
        AnyValue::StringOwned(name) => vec![name.to_string()],
        AnyValue::Struct(..) => image_names(&cell.clone().into_static()),
        AnyValue::StructOwned(parts) => {
            let (values, fields) = &**parts;
            let field = |name: &str| fields.iter().position(|field| field.name == name).map(|at| &values[at]);
            let is_inside = matches!(field("bytes"), Some(AnyValue::Binary(_) | AnyValue::BinaryOwned(_)));
            let path = field("path").and_then(AnyValue::get_str).filter(|_| !is_inside);
            path.into_iter().map(str::to_owned).collect()
        }
        _ => vec![],
    }
}

/// True if cells of this type may name images, so that they must be read to know.
pub(super) fn may_name_images(cells: &ArrowDataType) -> bool {
    match cells {
        ArrowDataType::Utf8 | ArrowDataType::LargeUtf8 | ArrowDataType::Utf8View => true,
        ArrowDataType::List(items) | ArrowDataType::LargeList(items) => may_name_images(&items.dtype),
        ArrowDataType::Struct(fields) => fields.iter().any(|field| field.name == "path"),
        _ => false,
    }
}

fn image(cell: &AnyValue<'_>, at: &str, place: &Place<'_>) -> Result<ImageRef, Fault> {
    let embedded = |bytes: &[u8], name: Option<&str>| ImageRef::Bytes {
        name: format!("{}, `{at}`{}", place.id, name.map_or(String::new(), |name| format!(" ({name})"))),
        data: bytes.to_vec().into(),
    };
    match cell {
        AnyValue::BinaryOwned(bytes) => Ok(embedded(bytes, None)),
        AnyValue::Binary(bytes) => Ok(embedded(bytes, None)),
        AnyValue::StringOwned(name) => place.images.resolve(name, place.folder),
        AnyValue::String(name) => place.images.resolve(name, place.folder),
        AnyValue::StructOwned(parts) => {
            let (values, fields) = &**parts;
            let field = |name: &str| fields.iter().position(|field| field.name == name).map(|at| &values[at]);
            let path = field("path").and_then(AnyValue::get_str);
            match (field("bytes"), path) {
                (Some(AnyValue::BinaryOwned(bytes)), path) => Ok(embedded(bytes, path)),
                (Some(AnyValue::Binary(bytes)), path) => Ok(embedded(bytes, path)),
                (_, Some(path)) => place.images.resolve(path, place.folder),
                _ => Err(Fault::new(
                    "missing_field",
                    format!("column `{at}`: expected `bytes` or `path`, found neither"),
                )),
            }
        }
        AnyValue::Null => Err(Fault::new("missing_field", format!("column `{at}`: expected an image, found null"))),
        other => {
            let detail =
                format!("column `{at}`: expected a file's bytes, a name or `{{bytes, path}}`, found {}", other.dtype());
            Err(Fault::new("wrong_type", detail))
        }
    }
}
