//! A plugin that does what its configuration says, to try the process around a
//! plugin from outside: `"do"` is `panic`, `fail` or `delegate` (to `ipam`).
//! Otherwise ADD gives what came, or one address.

use cni::delegate;
use cni::{AddResult, Attachment, AttachmentKey, Code, Error, IpConfig, Network, Plugin, Verb};

struct Probe;

impl Probe {
    fn act(&self, verb: Verb, network: &Network) -> Result<(), Error> {
        match network.keys().text("do")? {
            Some("panic") => panic!("the probe was told to, at {verb}"),
            Some("fail") => {
                Err(Error::new(Code::Kernel, "link eth0 not found").with_details("ENODEV"))
            }
            Some("delegate") if verb != Verb::Add => delegate::call(&ipam(network)?, verb, network),
            _ => Ok(()),
        }
    }
}

fn ipam(network: &Network) -> Result<std::path::PathBuf, Error> {
    delegate::find(network.ipam_type()?.unwrap_or_default(), &network.path)
}

impl Plugin for Probe {
    fn add(&self, attachment: &Attachment, network: &Network) -> Result<AddResult, Error> {
        self.act(Verb::Add, network)?;
        if network.keys().text("do")? == Some("delegate") {
            return delegate::add(&ipam(network)?, network);
        }
        if let Some(result) = &network.prev_result {
            return Ok(result.clone());
        }
        eprintln!("{}", attachment.key.ifname);
        let address = "10.1.2.3/24".parse().expect("a constant");
        let ip = IpConfig { address, gateway: None, interface: None };
        Ok(AddResult { ips: vec![ip], ..AddResult::default() })
    }

    fn check(&self, _: &Attachment, network: &Network) -> Result<(), Error> {
        network.require_prev_result()?;
        self.act(Verb::Check, network)
    }

    fn del(&self, attachment: &Attachment, network: &Network) -> Result<(), Error> {
        eprintln!("{:?}", attachment.netns);
        self.act(Verb::Del, network)
    }

    fn gc(&self, valid: &[AttachmentKey], network: &Network) -> Result<(), Error> {
        eprintln!("{}", valid.len());
        self.act(Verb::Gc, network)
    }

    fn status(&self, network: &Network) -> Result<(), Error> {
        self.act(Verb::Status, network)
    }
}

fn main() -> std::process::ExitCode {
    cni::run(&Probe)
}
