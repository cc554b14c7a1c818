//! The few facts of a device that the kernel tells without the lock that all changes of
//! links wait for (RTNL): while a link is removed that is held for milliseconds
//! (netdevice(7), `dev_ifsioc_locked`).

use std::ffi::c_char;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::netlink::Rtnetlink;

mod call {
    use nix::ioctl_readwrite_bad;

    ioctl_readwrite_bad!(siocgifname, libc::SIOCGIFNAME, libc::ifreq);
    ioctl_readwrite_bad!(siocgifindex, libc::SIOCGIFINDEX, libc::ifreq);
    ioctl_readwrite_bad!(siocgifmtu, libc::SIOCGIFMTU, libc::ifreq);
    ioctl_readwrite_bad!(siocgifflags, libc::SIOCGIFFLAGS, libc::ifreq);
}

/// A device, as far as this module tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
}

/// An ioctl of netdevice(7).
type Call = unsafe fn(i32, *mut libc::ifreq) -> nix::Result<i32>;

impl Rtnetlink {
    /// Number of the device called `name`; `None` where there is none.
    pub fn index_of(&self, name: &str) -> Result<Option<u32>> {
        let mut request = request(0);
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()).take(libc::IFNAMSIZ - 1) {
            *to = from as c_char;
        }
        let found = self.ask(call::siocgifindex, &mut request);
        found.map_err(|e| e.about(format_args!("cannot look up link {name}")))
    }

    /// The device of number `index`; `None` where there is none.
    pub fn interface(&self, index: u32) -> Result<Option<Interface>> {
        let look_up = || {
            let mut request = request(index as i32);
            if self.ask(call::siocgifname, &mut request)?.is_none() {
                return Ok(None);
            }
            let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
            let name = name.map(|byte| *byte as u8).collect::<Vec<u8>>();
            let name = String::from_utf8_lossy(&name).into_owned();
            let mtu = self.ask(call::siocgifmtu, &mut request)?;
            let flags = self.ask(call::siocgifflags, &mut request)?;
            Ok(mtu.zip(flags).map(|(mtu, flags)| Interface { name, mtu, up: is_up(flags) }))
        };
        look_up()
            .map_err(|e: Error| e.about(format_args!("cannot look up the link of index {index}")))
    }

    /// The number that the kernel answers with.
    fn ask(&self, call: Call, request: &mut libc::ifreq) -> Result<Option<u32>> {
        // SAFETY: each call reads and writes one `ifreq`, whose name ends with a zero and
        // which the reference keeps alive; index, MTU and flags are integers in the same place.
        #[expect(unsafe_code, reason = "ioctl(2), and a union")]
        let answer = unsafe {
            call(self.as_raw_fd(), request).map(|_| request.ifr_ifru.ifru_ifindex as u32)
        };
        match answer {
            Ok(number) => Ok(Some(number)),
            Err(Errno::ENODEV) => Ok(None),
            Err(errno) => Err(Error::new("ioctl", errno)),
        }
    }
}

/// IFF_UP of `ifr_flags`, a short that begins where the number does.
fn is_up(number: u32) -> bool {
    let [first, second, ..] = number.to_ne_bytes();
    u16::from_ne_bytes([first, second]) & libc::IFF_UP as u16 != 0
}

fn request(index: i32) -> libc::ifreq {
    let value = libc::__c_anonymous_ifr_ifru { ifru_ifindex: index };
    libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: value }
}
