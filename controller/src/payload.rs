//! What travels to a node for one unit, in its two blocks.
//!
//! The **project tree** ([`tree`]) is named by content: the node keeps chunks between jobs and asks only for those it
//! lacks. The **private block** ([`private`]) holds inventory, variables and credentials; it is built in memory, sent
//! whole and kept nowhere but in the node's tmpfs for as long as the unit lives. What credentials of all kinds put into it is
//! rendered by [`injectors`].
//!
//! Nothing here knows the database, the mesh or the clock: rows come in as plain values, messages go out.

pub mod extra_vars;
pub mod injectors;
pub mod inventory_update;
pub mod private;
pub mod tree;
