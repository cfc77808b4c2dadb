//! Results for programs: the JSON of the answer, unchanged, over several lines. JSON escapes most control characters;
//! those that it need not are escaped too, because people look at it on terminals.

use serde::Serialize;

use crate::terminal::escaped;

/// The JSON of a value, ending with a line break.
pub(crate) fn text<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(value).map(|json| escaped(&json) + "\n")
}

#[cfg(test)]
mod tests {
    use berth_common::message::{request::HostListReply, view::InstanceView};

    use super::*;
    use crate::testing;

    #[test]
    fn json_is_the_answer_as_it_came() {
        let view = testing::instance();
        assert_eq!(
            serde_json::from_str::<InstanceView>(&text(&view).unwrap()).unwrap(),
            view
        );
        let list = HostListReply {
            hosts: vec![testing::host()],
            more: false,
        };
        let json: serde_json::Value = serde_json::from_str(&text(&list).unwrap()).unwrap();
        assert_eq!(json["hosts"][0]["total"]["memory_mb"], 24_000);
    }
}
