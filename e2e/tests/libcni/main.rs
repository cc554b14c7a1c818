//! weft under a real caller: libcni itself, and what `weft install` puts where it looks.

mod install;
