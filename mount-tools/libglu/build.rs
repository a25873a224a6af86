//! Gives the shared library the name that programs ask for; its number grows when they have to be built anew.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libglu.so.0");
    println!("cargo::rerun-if-changed=build.rs");
}
