//! The real tool on small stores: what it says and with which exit status, that it finds what is damaged and puts it right, and that
//! what does not write changes nothing.

mod archive;
mod bazel_remote;
mod bench;
mod compressed;
mod damage;
mod grow;
mod healthy;
mod matrix;
mod random;
mod rebuild;
mod refusals;
mod served;
mod server;
mod shrink;
mod store;
