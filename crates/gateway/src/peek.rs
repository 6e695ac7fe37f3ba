//! The model's name out of a body, without building a document.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::GatewayError;

/// The one field that routing needs. serde_json checks and skips the rest of the body without
/// keeping it.
#[derive(Deserialize)]
struct Routed<'a> {
    #[serde(borrow, default)]
    model: Option<Cow<'a, str>>,
}

/// The value of `model` at the top of a JSON object.
pub(crate) fn model(body: &[u8]) -> Result<Cow<'_, str>, GatewayError> {
    // serde would take an array for the object's fields in their order.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(GatewayError::BadJson("it is not an object".to_owned()));
    }
    let routed: Routed<'_> =
        serde_json::from_slice(body).map_err(|error| GatewayError::BadJson(error.to_string()))?;
    routed.model.filter(|model| !model.is_empty()).ok_or(GatewayError::NoModel)
}

/// The same body with another name as its model; all else stays byte for byte.
pub(crate) fn renamed(body: &Bytes, name: &str) -> Bytes {
    #[derive(Deserialize)]
    struct Raw<'a> {
        #[serde(borrow)]
        model: &'a RawValue,
    }
    let Ok(raw) = serde_json::from_slice::<Raw<'_>>(body) else { return body.clone() };
    let value = raw.model.get();
    // The raw value is a part of the body: where it starts is how far in it lies.
    let start = value.as_ptr() as usize - body.as_ptr() as usize;
    let name = serde_json::Value::from(name).to_string();
    let parts = [&body[..start], name.as_bytes(), &body[start + value.len()..]];
    Bytes::from(parts.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_model_wherever_it_stands() {
        for (body, expected) in [
            (r#"{"model":"tiny"}"#, Ok("tiny")),
            (r#"{"messages":[{"model":"no"}],"x":{"model":1},"model":"tiny"}"#, Ok("tiny")),
            (r#"{"model":"t\u0069ny"}"#, Ok("tiny")),
            (r#"{"mo\u0064el":"tiny"}"#, Ok("tiny")),
            (r#"{"model":""}"#, Err("model_missing")),
            (r#"{"messages":[]}"#, Err("model_missing")),
            (r#"{"model":null}"#, Err("model_missing")),
            (r#"{"model":7}"#, Err("invalid_json")),
            (r#"{"model":"a","model":"b"}"#, Err("invalid_json")),
            (r#"{"model":"tiny""#, Err("invalid_json")),
            (r#"{"model":"tiny"} x"#, Err("invalid_json")),
            (r#"["model"]"#, Err("invalid_json")),
            ("", Err("invalid_json")),
        ] {
            let found = model(body.as_bytes());
            let found = found.as_deref().map_err(GatewayError::code);
            assert_eq!(found, expected, "{body}");
        }
    }

    #[test]
    fn only_the_name_changes() {
        for (body, expected) in [
            (r#"{"model":"a"}"#, r#"{"model":"b\"c"}"#),
            (
                r#" { "x" : {"model":"no"}, "model" : "t\u0069ny" , "y":1e400}"#,
                r#" { "x" : {"model":"no"}, "model" : "b\"c" , "y":1e400}"#,
            ),
            ("{}", "{}"),
        ] {
            let renamed = renamed(&Bytes::from(body), "b\"c");
            assert_eq!(renamed, Bytes::from(expected), "{body}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow() {
        let body = format!(r#"{{"x":{}"#, "[".repeat(1_000_000));
        assert_eq!(model(body.as_bytes()).map_err(|e| e.code()).err(), Some("invalid_json"));
    }
}
