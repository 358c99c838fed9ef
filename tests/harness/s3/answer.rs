//! What each request does to the bucket.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::http::{Request, Response};
use super::{BUCKET, State, tag_of};

/// Every object's time: nothing depends on it but that it stays.
const HTTP_TIME: &str = "Wed, 01 Jul 2026 00:00:00 GMT";
const XML_TIME: &str = "2026-07-01T00:00:00.000Z";
const DEFAULT_PAGE_KEYS: usize = 1000;

impl State {
    pub(super) fn answer(&mut self, request: &Request) -> Response {
        let (bucket, key) = request.path.split_once('/').unwrap_or((&request.path, ""));
        let has = |name: &str| request.query.contains_key(name);
        if bucket != BUCKET {
            return Response::error(404, "NoSuchBucket");
        }
        match request.method.as_str() {
            "GET" if key.is_empty() => self.list(request),
            "GET" | "HEAD" => self.get(request, key),
            "PUT" if has("uploadId") => self.put_part(request, key),
            "PUT" => self.put_object(request, key),
            "POST" if has("delete") => self.delete_many(request),
            "POST" if has("uploads") => self.start_upload(key),
            "POST" if has("uploadId") => self.complete_upload(request, key),
            "DELETE" if has("uploadId") => match self.uploads.remove(&request.query["uploadId"]) {
                Some(_) => Response::new(204, ""),
                None => Response::error(404, "NoSuchUpload"),
            },
            "DELETE" => {
                self.objects.remove(key);
                Response::new(204, "")
            }
            _ => Response::error(405, "MethodNotAllowed"),
        }
    }

    fn get(&self, request: &Request, key: &str) -> Response {
        let Some(content) = self.objects.get(key) else { return Response::error(404, "NoSuchKey") };
        let tag = tag_of(content);
        if request.header("if-match").is_some_and(|wanted| wanted != tag) {
            return Response::error(412, "PreconditionFailed");
        }
        let with_meta = |response: Response| response.with("ETag", &tag).with("Last-Modified", HTTP_TIME);
        let Some(range) = request.header("range").and_then(|range| range.strip_prefix("bytes=")) else {
            return with_meta(Response::new(200, content.to_vec()));
        };
        let bounds = range.split_once('-').and_then(|(start, last)| Some((start.parse().ok()?, last.parse().ok()?)));
        match bounds {
            Some((start, last)) if start <= last && last < content.len() => {
                let part = Response::new(206, &content[start..=last]);
                with_meta(part).with("Content-Range", format!("bytes {start}-{last}/{}", content.len()))
            }
            _ => Response::error(416, "InvalidRange"),
        }
    }

    fn put_object(&mut self, request: &Request, key: &str) -> Response {
        let is_new =
            request.header("if-none-match") == Some("*") || request.header("x-goog-if-generation-match") == Some("0");
        if is_new && self.objects.contains_key(key) {
            return Response::error(412, "PreconditionFailed");
        }
        let tag = tag_of(&request.body);
        self.objects.insert(key.to_owned(), Arc::new(request.body.clone()));
        Response::new(200, "").with("ETag", tag)
    }

    fn start_upload(&mut self, key: &str) -> Response {
        self.num_uploads += 1;
        let id = format!("upload-{}", self.num_uploads);
        self.uploads.insert(id.clone(), (key.to_owned(), BTreeMap::new()));
        Response::new(
            200,
            format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"),
        )
    }

    fn put_part(&mut self, request: &Request, key: &str) -> Response {
        let number = request.query.get("partNumber").and_then(|number| number.parse().ok());
        match (self.uploads.get_mut(&request.query["uploadId"]), number) {
            (Some((expected, parts)), Some(number)) if expected == key => {
                parts.insert(number, request.body.clone());
                Response::new(200, "").with("ETag", tag_of(&request.body))
            }
            _ => Response::error(404, "NoSuchUpload"),
        }
    }

    /// Joins the parts that the request names, each by the tag it was given.
    fn complete_upload(&mut self, request: &Request, key: &str) -> Response {
        let id = &request.query["uploadId"];
        let Some((_, parts)) = self.uploads.get(id) else { return Response::error(404, "NoSuchUpload") };
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let mut content = Vec::new();
        for (number, tag) in texts(&body, "PartNumber").into_iter().zip(texts(&body, "ETag")) {
            match number.parse().ok().and_then(|number: u32| parts.get(&number)) {
                Some(part) if tag_of(part) == tag => content.extend_from_slice(part),
                _ => return Response::error(400, "InvalidPart"),
            }
        }
        self.uploads.remove(id);
        let tag = tag_of(&content);
        self.objects.insert(key.to_owned(), Arc::new(content));
        let body = format!(
            "<CompleteMultipartUploadResult><ETag>{}</ETag></CompleteMultipartUploadResult>",
            tag.replace('"', "&quot;")
        );
        Response::new(200, body)
    }

    fn delete_many(&mut self, request: &Request) -> Response {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let deleted = texts(&body, "Key").into_iter().map(|key| {
            self.objects.remove(&key);
            format!("<Deleted><Key>{}</Key></Deleted>", escaped(&key))
        });
        let deleted: String = deleted.collect();
        Response::new(200, format!("<DeleteResult>{deleted}</DeleteResult>"))
    }

    /// ListObjectsV2: keys and, with a delimiter, what they have in common, in one order and in pages.
    fn list(&self, request: &Request) -> Response {
        let given = |name: &str| request.query.get(name).map_or("", String::as_str);
        let (prefix, delimiter) = (given("prefix"), given("delimiter"));
        let after = given("continuation-token").max(given("start-after"));
        let page_keys = self.page_keys.unwrap_or(DEFAULT_PAGE_KEYS);
        let mut entries: BTreeMap<String, String> = BTreeMap::new();
        for (key, content) in self.objects.iter().filter(|(key, _)| key.starts_with(prefix)) {
            let rest = &key[prefix.len()..];
            let common = if delimiter.is_empty() { None } else { rest.find(delimiter) };
            let (name, entry) = match common {
                Some(end) => {
                    let common = format!("{prefix}{}", &rest[..end + delimiter.len()]);
                    let entry = format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escaped(&common));
                    (common, entry)
                }
                None => {
                    let (name, size, tag) = (escaped(key), content.len(), tag_of(content).replace('"', "&quot;"));
                    let entry = format!(
                        "<Contents><Key>{name}</Key><Size>{size}</Size><LastModified>{XML_TIME}</LastModified>\
                         <ETag>{tag}</ETag></Contents>"
                    );
                    (key.clone(), entry)
                }
            };
            if name.as_str() > after {
                entries.insert(name, entry);
            }
        }
        let page: Vec<_> = entries.iter().take(page_keys).collect();
        let mut body: String = page.iter().map(|(_, entry)| entry.as_str()).collect();
        if let (Some((last, _)), true) = (page.last(), entries.len() > page.len()) {
            body.push_str(&format!("<NextContinuationToken>{}</NextContinuationToken>", escaped(last)));
        }
        Response::new(200, format!("<ListBucketResult>{body}</ListBucketResult>"))
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The texts of all elements `name`, in order.
fn texts(xml: &str, name: &str) -> Vec<String> {
    let (start, end) = (format!("<{name}>"), format!("</{name}>"));
    let after = xml.split(&start).skip(1);
    let inner = after.map(|rest| rest.split(&end).next().unwrap_or_default());
    inner
        .map(|text| text.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
        .collect()
}
