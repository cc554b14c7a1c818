//! weft under containerd, driven through its CRI socket as kubelet drives it: one
//! containerd a node of the lab, with runc and an image made from busybox.

mod configuration;
mod control_group;
mod cri;
mod daemon;
mod grpc;
mod machine;
mod many;
mod pods;
mod restart;
mod stage;
