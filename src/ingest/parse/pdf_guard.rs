//! What is looked at in a PDF before it is read: pdf-extract follows every reference, however often.

use std::collections::{HashMap, HashSet};

use lopdf::{Dictionary, Document as Pdf, Object, ObjectId, Stream};

/// Forms that one page may draw, those in forms included.
const MAX_FORMS: u64 = 100_000;
/// Forms in forms; each is a call on pdf-extract's stack.
const MAX_NESTED: usize = 32;
/// Nodes of the page tree above a page.
const MAX_PARENTS: usize = 64;

/// Takes the content of all images away: pdf-extract would decompress them and read them as text operators.
pub(super) fn empty_images(pdf: &mut Pdf) {
    for object in pdf.objects.values_mut() {
        if let Object::Stream(stream) = object
            && stream.dict.get(b"Subtype").and_then(Object::as_name).is_ok_and(|name| name == b"Image")
        {
            stream.dict.remove(b"Filter");
            stream.set_content(Vec::new());
        }
    }
}

/// Whether reading the page `id` ends: its parents and its forms have an end.
pub(super) fn is_finite(pdf: &Pdf, id: ObjectId) -> bool {
    let (mut node, mut resources) = (pdf.get_dictionary(id).ok(), None);
    for _ in 0..MAX_PARENTS {
        let Some(dict) = node else {
            let content = super::caught("", || pdf.get_page_content(id)).ok().and_then(Result::ok);
            let mut forms = Forms { pdf, known: HashMap::new(), open: Vec::new() };
            return forms.drawn(&content.unwrap_or_default(), resources) <= MAX_FORMS;
        };
        resources = resources.or_else(|| child(pdf, dict, b"Resources"));
        let parent = dict.get(b"Parent").and_then(Object::as_reference);
        node = parent.and_then(|parent| pdf.get_dictionary(parent)).ok();
    }
    false
}

fn child<'a>(pdf: &'a Pdf, dict: &'a Dictionary, key: &[u8]) -> Option<&'a Dictionary> {
    dict.get_deref(key, pdf).ok()?.as_dict().ok()
}

/// Counts the forms that a content draws.
struct Forms<'a> {
    pdf: &'a Pdf,
    /// Of each form, how many it draws; with the resources that a form without its own takes from its caller.
    known: HashMap<(ObjectId, *const Dictionary), u64>,
    open: Vec<ObjectId>,
}

impl<'a> Forms<'a> {
    /// At most how many forms `content` draws; [`u64::MAX`] for a circle.
    fn drawn(&mut self, content: &[u8], resources: Option<&'a Dictionary>) -> u64 {
        let (calls, names) = tokens(content);
        let Some(named) = resources.and_then(|r| child(self.pdf, r, b"XObject")).filter(|_| calls > 0) else {
            return 0;
        };
        // A page may share the forms of a whole document: those that it does not name are not its own.
        let escaped = names.iter().any(|name| name.contains(&b'#'));
        let mut most = 0;
        for (name, form) in named {
            if let Ok(id) = form.as_reference()
                && (escaped || names.contains(name.as_slice()))
            {
                most = most.max(self.form(id, resources));
            }
        }
        calls.saturating_mul(most.saturating_add(1))
    }

    fn form(&mut self, id: ObjectId, callers: Option<&'a Dictionary>) -> u64 {
        let Ok(stream) = self.pdf.get_object(id).and_then(Object::as_stream) else { return 0 };
        let resources = child(self.pdf, &stream.dict, b"Resources").or(callers);
        let key = (id, resources.map_or(std::ptr::null(), std::ptr::from_ref));
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        if self.open.contains(&id) || self.open.len() >= MAX_NESTED {
            return u64::MAX;
        }
        self.open.push(id);
        let drawn = self.drawn(&content(stream), resources);
        self.open.pop();
        self.known.insert(key, drawn);
        drawn
    }
}

/// How often a content says `Do`, and its names without their slash.
fn tokens(content: &[u8]) -> (u64, HashSet<&[u8]>) {
    let (mut calls, mut names) = (0, HashSet::new());
    for part in content.split(|byte| byte.is_ascii_whitespace() || b"()<>[]{}%\0".contains(byte)) {
        calls += u64::from(part == b"Do");
        names.extend(part.split(|byte| *byte == b'/').skip(1));
    }
    (calls, names)
}

fn content(stream: &Stream) -> Vec<u8> {
    super::caught("", || stream.decompressed_content())
        .ok()
        .and_then(Result::ok)
        .unwrap_or_else(|| stream.content.clone())
}
