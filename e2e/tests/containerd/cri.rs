//! The part of the CRI (kubernetes/cri-api, `runtime.v1`) that makes pods and runs
//! programs in them, as kubelet calls it.
//!
//! Of each message only the fields that are used: protobuf skips what it does not know.
//! Field numbers are those of cri-api's `api.proto`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use prost::Message;

use crate::grpc::Channel;

/// What names a pod.
#[derive(Clone, Message)]
pub(crate) struct PodMetadata {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) uid: String,
    #[prost(string, tag = "3")]
    pub(crate) namespace: String,
}

#[derive(Clone, Message)]
struct PodConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodMetadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPodConfig>,
}

#[derive(Clone, Message)]
struct LinuxPodConfig {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
}

#[derive(Message)]
struct RunPodRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodConfig>,
}

/// A request or an answer that is the ID of a pod or container, or empty.
#[derive(Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Message)]
struct PodStatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<PodStatus>,
}

#[derive(Message)]
struct PodStatus {
    /// 0 ready, 1 not.
    #[prost(int32, tag = "3")]
    state: i32,
    #[prost(message, optional, tag = "5")]
    network: Option<PodNetwork>,
}

#[derive(Message)]
struct PodNetwork {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(message, repeated, tag = "2")]
    more: Vec<Id>,
}

#[derive(Message)]
struct Empty {}

#[derive(Message)]
struct Pods {
    #[prost(message, repeated, tag = "1")]
    items: Vec<ListedPod>,
}

/// A pod as the runtime lists it.
#[derive(Clone, Message)]
pub(crate) struct ListedPod {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
}

#[derive(Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pod_config: Option<PodConfig>,
}

#[derive(Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Name>,
    #[prost(message, optional, tag = "2")]
    image: Option<Name>,
}

#[derive(Message)]
struct Name {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Message)]
struct ExecRequest {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
    /// Seconds.
    #[prost(int64, tag = "3")]
    timeout: i64,
}

#[derive(Message)]
struct ExecAnswer {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    exit_code: i32,
}

#[derive(Message)]
struct StatusRequest {
    #[prost(bool, tag = "1")]
    verbose: bool,
}

#[derive(Message)]
struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<Conditions>,
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Message)]
struct Conditions {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<Condition>,
}

/// Whether the runtime, or its network, is ready.
#[derive(Clone, Message)]
pub(crate) struct Condition {
    /// `RuntimeReady` or `NetworkReady`.
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(bool, tag = "2")]
    pub(crate) status: bool,
    /// Why not.
    #[prost(string, tag = "4")]
    pub(crate) message: String,
}

/// A pod that runs, with one container in it.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    /// The sandbox's ID, which is CNI_CONTAINERID.
    pub(crate) id: String,
    /// The container's ID.
    pub(crate) container: String,
    /// As the runtime reports them, the first one first.
    pub(crate) addresses: Vec<IpAddr>,
}

/// A connection to a runtime.
#[derive(Debug)]
pub(crate) struct Client {
    channel: Channel,
    /// Where pods' control groups are made.
    cgroup_parent: String,
    image: String,
}

/// Seconds that a command in a container may take.
const EXEC_TIMEOUT: i64 = 60;

impl Client {
    /// Connects to the runtime's socket.
    pub(crate) fn connect(socket: &Path, cgroup_parent: &str, image: &str) -> Result<Client> {
        let channel = Channel::connect(socket)?;
        Ok(Client { channel, cgroup_parent: cgroup_parent.to_owned(), image: image.to_owned() })
    }

    fn runtime<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A> {
        self.channel.call(&format!("/runtime.v1.RuntimeService/{method}"), request)
    }

    /// `RuntimeReady` and `NetworkReady`.
    pub(crate) fn conditions(&self) -> Result<Vec<Condition>> {
        let answer: StatusAnswer = self.runtime("Status", &StatusRequest { verbose: false })?;
        Ok(answer.status.context("no status")?.conditions)
    }

    /// What the runtime says of its CNI configuration when asked for everything (JSON).
    pub(crate) fn cni_config(&self) -> Result<String> {
        let mut answer: StatusAnswer = self.runtime("Status", &StatusRequest { verbose: true })?;
        answer.info.remove("cniconfig").context("no cniconfig")
    }

    fn config(&self, name: &str) -> PodConfig {
        let metadata = PodMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "default".to_owned(),
        };
        PodConfig {
            metadata: Some(metadata),
            hostname: name.to_owned(),
            linux: Some(LinuxPodConfig { cgroup_parent: self.cgroup_parent.clone() }),
        }
    }

    /// Makes a pod's sandbox, attached to the network; its ID.
    pub(crate) fn run_sandbox(&self, name: &str) -> Result<String> {
        let request = RunPodRequest { config: Some(self.config(name)) };
        Ok(self.runtime::<Id>("RunPodSandbox", &request)?.id)
    }

    /// Makes a pod and starts a container in it that does nothing.
    pub(crate) fn run(&self, name: &str) -> Result<Pod> {
        let id = self.run_sandbox(name)?;
        let named = |name: &str| Some(Name { name: name.to_owned() });
        let request = CreateContainerRequest {
            pod: id.clone(),
            config: Some(ContainerConfig { metadata: named("main"), image: named(&self.image) }),
            pod_config: Some(self.config(name)),
        };
        let container = self.runtime::<Id>("CreateContainer", &request)?.id;
        let _: Empty = self.runtime("StartContainer", &Id { id: container.clone() })?;
        let addresses = self.addresses(&id)?;
        Ok(Pod { id, container, addresses })
    }

    /// The addresses of a pod that is ready.
    pub(crate) fn addresses(&self, id: &str) -> Result<Vec<IpAddr>> {
        let answer: PodStatusAnswer =
            self.runtime("PodSandboxStatus", &Id { id: id.to_owned() })?;
        let status = answer.status.context("no status")?;
        ensure!(status.state == 0, "{id} is not ready");
        let network = status.network.context("no network")?;
        let all = std::iter::once(&network.ip).chain(network.more.iter().map(|more| &more.id));
        all.map(|text| text.parse().with_context(|| format!("{id}: address {text:?}"))).collect()
    }

    /// Every pod that the runtime knows.
    pub(crate) fn list(&self) -> Result<Vec<ListedPod>> {
        Ok(self.runtime::<Pods>("ListPodSandbox", &Empty {})?.items)
    }

    /// Takes a pod off the network and ends it, then forgets it.
    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        let id = Id { id: id.to_owned() };
        let _: Empty = self.runtime("StopPodSandbox", &id)?;
        let _: Empty = self.runtime("RemovePodSandbox", &id)?;
        Ok(())
    }

    /// Runs a command in a pod's container; it has to succeed. Its standard output.
    pub(crate) fn exec(&self, pod: &Pod, command: &[&str]) -> Result<String> {
        let request = ExecRequest {
            container: pod.container.clone(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: EXEC_TIMEOUT,
        };
        let answer: ExecAnswer = self.runtime("ExecSync", &request)?;
        let (stdout, stderr) =
            (String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr));
        ensure!(answer.exit_code == 0, "{command:?}: {}: {stdout}{stderr}", answer.exit_code);
        Ok(stdout.into_owned())
    }
}
