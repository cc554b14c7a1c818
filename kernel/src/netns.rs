//! Network namespaces, by file descriptor.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::statfs::{NSFS_MAGIC, PROC_SUPER_MAGIC, fstatfs};

use crate::error::{Error, Result};
use crate::netlink::{Message, Rtnetlink};
use crate::uapi::{NETNSA_FD, NETNSA_NSID, NSID_NOT_ASSIGNED, SIOCGSKNS};

nix::ioctl_none_bad!(
    /// The network namespace of a socket, as a descriptor (`include/linux/sockios.h`).
    siocgskns,
    SIOCGSKNS
);

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
    name: String,
}

impl Netns {
    /// The namespace at `path`.
    ///
    /// # Errors
    /// ENOENT where nothing is there, EINVAL where it is something else: a
    /// runtime that removed a namespace may leave a plain file behind.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        // Non-blocking, for a path may turn out to be a fifo.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file =
            file.map_err(|e| Error::io(format!("cannot open network namespace {name}"), &e))?;
        let kind = fstatfs(&file).map(|fs| fs.filesystem_type());
        let is_namespace = kind.is_ok_and(|kind| kind == PROC_SUPER_MAGIC || kind == NSFS_MAGIC);
        if !is_namespace {
            return Err(Error::new(format!("{name} is no network namespace"), Errno::EINVAL));
        }
        Ok(Self { file, name })
    }

    /// The namespace that the thread is in.
    pub fn current() -> Result<Self> {
        let path = "/proc/thread-self/ns/net";
        match Self::of_new_socket() {
            Ok(file) => Ok(Self { file, name: path.to_owned() }),
            // Not allowed without CAP_NET_ADMIN, and a matter of speed alone.
            Err(_) => Self::open(Path::new(path)),
        }
    }

    /// By way of a socket: the path in /proc costs the kernel five directory entries
    /// and inodes, for every process anew.
    fn of_new_socket() -> nix::Result<File> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        Self::of_socket(socket.as_raw_fd())
    }

    /// The namespace that `socket` is in.
    fn of_socket(socket: RawFd) -> nix::Result<File> {
        // SAFETY: SIOCGSKNS takes no argument, and its result is a new descriptor that
        // nobody else knows of.
        #[expect(unsafe_code, reason = "ioctl(2), and a descriptor by number")]
        let file = unsafe { File::from_raw_fd(siocgskns(socket)?) };
        Ok(file)
    }

    /// Whether both are the same namespace.
    pub fn is(&self, other: &Self) -> Result<bool> {
        Ok(self.identity()? == other.identity()?)
    }

    /// Device and inode, which together name a namespace while it lives.
    pub fn identity(&self) -> Result<(u64, u64)> {
        let metadata = self.file.metadata();
        let metadata = metadata.map_err(|e| Error::io(format!("cannot stat {}", self.name), &e))?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// Runs `work` with the thread inside this namespace, then returns to
    /// `home`. Sockets opened inside stay in the namespace.
    ///
    /// # Panics
    /// Aborts the process if the thread cannot go home: whatever came next
    /// would be done to the wrong namespace.
    pub fn run<T>(&self, home: &Self, work: impl FnOnce() -> T) -> Result<T> {
        self.enter()?;
        let result = work();
        if home.enter().is_err() {
            std::process::abort();
        }
        Ok(result)
    }

    fn enter(&self) -> Result<()> {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::new(format!("cannot enter network namespace {}", self.name), e))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Rtnetlink {
    /// The namespace that the socket is in.
    pub fn netns(&self) -> Result<Netns> {
        match Netns::of_socket(self.as_raw_fd()) {
            Ok(file) => Ok(Netns { file, name: "of the host".to_owned() }),
            // Not allowed without CAP_NET_ADMIN, and a matter of speed alone: the socket is
            // in the namespace in which it was opened.
            Err(_) => Netns::current(),
        }
    }

    /// The number by which the socket's namespace knows `netns`
    /// ([`Link::lower_nsid`](crate::link::Link::lower_nsid)); `None` where the
    /// two have nothing to do with each other.
    pub fn nsid(&mut self, netns: &Netns) -> Result<Option<i32>> {
        let mut message = Message::new(libc::RTM_GETNSID, 0, &[0; 4]);
        message.attr_u32(NETNSA_FD, netns.file.as_raw_fd() as u32);
        let id = self.get(message, |reply| {
            let id = reply.attributes(4).find(|a| a.kind == NETNSA_NSID)?.u32()?;
            Some(id as i32)
        });
        let id =
            id.map_err(|e| e.about(format_args!("cannot look up the id of {}", netns.name)))?;
        Ok(id.filter(|&id| id != NSID_NOT_ASSIGNED))
    }
}
