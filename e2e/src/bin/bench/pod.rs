//! A pod as parent and worker speak of it.

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// One pod of a chain.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    /// CNI_CONTAINERID; for the bare baseline the host end's name.
    pub(crate) id: String,
    /// CNI_ARGS.
    pub(crate) args: String,
    /// Host port, for chains that map one.
    pub(crate) port: u16,
}

impl Pod {
    pub(crate) fn to_json(&self) -> Value {
        json!({"id": self.id, "args": self.args, "port": self.port})
    }

    pub(crate) fn from_json(value: &Value) -> Result<Self> {
        let text = |key: &str| value[key].as_str().with_context(|| format!("pod: {key}"));
        let port = value["port"].as_u64().and_then(|port| u16::try_from(port).ok());
        Ok(Self {
            id: text("id")?.to_owned(),
            args: text("args")?.to_owned(),
            port: port.context("pod: port")?,
        })
    }

    /// CNI_NETNS.
    pub(crate) fn netns(&self) -> String {
        format!("/run/netns/{}", self.id)
    }
}
