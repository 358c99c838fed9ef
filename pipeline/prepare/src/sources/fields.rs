//! Fields that several formats share: ids, names of images, turns.

use std::borrow::Cow;

use serde_json::Value;
use vela_types::{IMAGE_MARK, ImageRef, Language, Role, Sample, Turn};

use super::{Fault, ImageFolder, RawContent};
use std::path::Path;

/// Names that end so may stand in a comma list.
pub(super) const IMAGE_ENDINGS: [&str; 10] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2"];

/// Where a record stands: its id and where its images are looked for.
pub(super) struct Place<'a> {
    /// The sample's id.
    pub(super) id: &'a str,
    /// Where names of images lead.
    pub(super) images: &'a ImageFolder,
    /// The folder of the data file.
    pub(super) folder: &'a Path,
}

impl Place<'_> {
    /// The images of `names`, in order.
    pub(super) fn resolve(&self, names: &[String]) -> Result<Vec<ImageRef>, Fault> {
        names.iter().map(|name| self.images.resolve(name, self.folder)).collect()
    }

    /// A checked dialogue. System turns without text are left out.
    pub(super) fn dialogue(
        &self,
        source: &str,
        images: Vec<ImageRef>,
        mut turns: Vec<Turn>,
    ) -> Result<RawContent, Fault> {
        turns.retain(|turn| turn.role != Role::System || !turn.text.is_empty());
        let all_text: String = turns.iter().map(|turn| turn.text.as_str()).collect();
        let language = Language::guess(&all_text.replace(IMAGE_MARK, ""));
        let sample = Sample { id: self.id.to_owned(), source: source.to_owned(), language, images, turns };
        sample.check().map_err(|fault| Fault::new(fault.cause(), fault.to_string()))?;
        Ok(RawContent::Dialogue(sample))
    }
}

/// What a format calls the parts of a turn and its roles.
pub(super) struct TurnFields<'a> {
    /// Field of the role.
    pub(super) role: &'a str,
    /// Field of the text.
    pub(super) text: &'a str,
    /// Who is the user, the assistant and the system.
    pub(super) roles: &'a [(&'a str, Role)],
}

impl TurnFields<'_> {
    /// The turns of a list; `field` is its name in messages.
    pub(super) fn read_all(&self, turns: &Value, field: &str) -> Result<Vec<Turn>, Fault> {
        let Some(turns) = turns.as_array() else {
            return Err(Fault::new("missing_field", format!("field `{field}`: expected a list")));
        };
        turns.iter().enumerate().map(|(at, turn)| self.read(at, turn)).collect()
    }

    fn read(&self, at: usize, turn: &Value) -> Result<Turn, Fault> {
        let role = self.read_role(at, turn)?;
        Ok(Turn { role, text: read_text(&turn[self.text], at, self.text)? })
    }

    /// The role of turn `at`.
    pub(super) fn read_role(&self, at: usize, turn: &Value) -> Result<Role, Fault> {
        let field = self.role;
        let Some(found) = turn[field].as_str() else {
            return Err(Fault::new("missing_field", format!("turn {at}, field `{field}`: expected a text")));
        };
        self.roles.iter().find(|(name, _)| *name == found).map(|(_, role)| *role).ok_or_else(|| {
            let mut expected: Vec<&str> = self.roles.iter().map(|(name, _)| *name).collect();
            let last = expected.pop().unwrap_or_default();
            let expected = format!("{} or {last}", expected.join(", "));
            Fault::new("unknown_role", format!("turn {at}, field `{field}`: expected {expected}, found `{found}`"))
        })
    }
}

/// A turn's text, CRLF as LF and white space around it removed.
pub(super) fn read_text(text: &Value, at: usize, field: &str) -> Result<String, Fault> {
    match text {
        Value::String(text) => Ok(clean(text)),
        Value::Null => Err(Fault::new("empty_turn", format!("turn {at}, field `{field}`: expected text, found none"))),
        _ => Err(Fault::new("wrong_type", format!("turn {at}, field `{field}`: expected a text"))),
    }
}

/// CRLF becomes LF and the text is trimmed; nothing inside it moves.
pub(super) fn clean(text: &str) -> String {
    text.replace("\r\n", "\n").trim().to_owned()
}

/// A record's own id as it stands in sample ids: `%`, `/`, `#`, `~` and `@`, which have a meaning there, as in URLs. So no two
/// records share an id, whatever they call themselves.
pub(super) fn escaped(own_id: &str) -> Cow<'_, str> {
    if !own_id.contains(['%', '/', '#', '~', '@']) {
        return Cow::Borrowed(own_id);
    }
    let escape = |letter: char| match letter {
        '%' => "%25".to_owned(),
        '/' => "%2F".to_owned(),
        '#' => "%23".to_owned(),
        '~' => "%7E".to_owned(),
        '@' => "%40".to_owned(),
        letter => letter.to_string(),
    };
    own_id.chars().map(escape).collect()
}

/// Ids are texts or integers; anything else counts as absent.
pub(super) fn id_text(id: &Value) -> Option<String> {
    match id {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A name, a list of names, or a comma list (only if each part ends like an image file); none for a text-only record.
pub(super) fn image_names(image: &Value, field: &str) -> Result<Vec<String>, Fault> {
    let wrong = || Fault::new("wrong_type", format!("field `{field}`: expected a text or a list of texts"));
    match image {
        Value::Null => Ok(vec![]),
        Value::String(text) if text.trim().is_empty() => Ok(vec![]),
        Value::String(text) => {
            let parts: Vec<String> = text.split(',').map(|part| part.trim().to_owned()).collect();
            let is_list = !text.starts_with("data:")
                && parts.iter().all(|part| {
                    let ending = part.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
                    ending.is_some_and(|ending| IMAGE_ENDINGS.contains(&ending.as_str()))
                });
            Ok(if is_list { parts } else { vec![text.trim().to_owned()] })
        }
        Value::Array(names) => names.iter().map(|name| name.as_str().map(str::to_owned).ok_or_else(wrong)).collect(),
        _ => Err(wrong()),
    }
}
