//! Trees of values: structs of [`Op`]s that are carried through loops and passed to computations as
//! a whole.

use super::Op;

/// A structure whose leaves are the values of one computation.
pub trait Tree<'g>: Sized {
    /// The same structure with another computation's values.
    type In<'b>: Tree<'b>;

    /// Appends the leaves, in the order in which [`Self::rebuild`] takes them.
    fn leaves(&self, out: &mut Vec<Op<'g>>);

    /// Appends a name for each leaf, made of the fields on the way to it.
    fn names(&self, path: &str, out: &mut Vec<String>);

    /// Builds the structure from other leaves; all that is no leaf is kept.
    ///
    /// # Panics
    /// If there are fewer leaves than [`Self::leaves`] gives.
    fn rebuild<'b>(&self, leaves: &mut dyn Iterator<Item = Op<'b>>) -> Self::In<'b>;

    /// All leaves.
    fn flatten(&self) -> Vec<Op<'g>> {
        let mut out = Vec::new();
        self.leaves(&mut out);
        out
    }

    /// The structure with each leaf replaced.
    fn map(&self, f: impl FnMut(Op<'g>) -> Op<'g>) -> Self::In<'g> {
        self.rebuild(&mut self.flatten().into_iter().map(f))
    }
}

impl<'g> Tree<'g> for Op<'g> {
    type In<'b> = Op<'b>;

    fn leaves(&self, out: &mut Vec<Op<'g>>) {
        out.push(*self);
    }

    fn names(&self, path: &str, out: &mut Vec<String>) {
        out.push(path.to_owned());
    }

    fn rebuild<'b>(&self, leaves: &mut dyn Iterator<Item = Op<'b>>) -> Op<'b> {
        leaves.next().expect("as many leaves as the tree has")
    }
}

impl<'g, T: Tree<'g>> Tree<'g> for Option<T> {
    type In<'b> = Option<T::In<'b>>;

    fn leaves(&self, out: &mut Vec<Op<'g>>) {
        self.iter().for_each(|tree| tree.leaves(out));
    }

    fn names(&self, path: &str, out: &mut Vec<String>) {
        self.iter().for_each(|tree| tree.names(path, out));
    }

    fn rebuild<'b>(&self, leaves: &mut dyn Iterator<Item = Op<'b>>) -> Self::In<'b> {
        self.as_ref().map(|tree| tree.rebuild(leaves))
    }
}

impl<'g, T: Tree<'g>> Tree<'g> for Vec<T> {
    type In<'b> = Vec<T::In<'b>>;

    fn leaves(&self, out: &mut Vec<Op<'g>>) {
        self.iter().for_each(|tree| tree.leaves(out));
    }

    fn names(&self, path: &str, out: &mut Vec<String>) {
        self.iter().enumerate().for_each(|(i, tree)| tree.names(&join(path, &i.to_string()), out));
    }

    fn rebuild<'b>(&self, leaves: &mut dyn Iterator<Item = Op<'b>>) -> Self::In<'b> {
        self.iter().map(|tree| tree.rebuild(leaves)).collect()
    }
}

impl<'g, T: Tree<'g>, const N: usize> Tree<'g> for [T; N] {
    type In<'b> = [T::In<'b>; N];

    fn leaves(&self, out: &mut Vec<Op<'g>>) {
        self.iter().for_each(|tree| tree.leaves(out));
    }

    fn names(&self, path: &str, out: &mut Vec<String>) {
        self.iter().enumerate().for_each(|(i, tree)| tree.names(&join(path, &i.to_string()), out));
    }

    fn rebuild<'b>(&self, leaves: &mut dyn Iterator<Item = Op<'b>>) -> Self::In<'b> {
        std::array::from_fn(|i| self[i].rebuild(leaves))
    }
}

macro_rules! tuple_trees {
    ($(($($name:ident $index:tt),*);)*) => {$(
        impl<'g, $($name: Tree<'g>),*> Tree<'g> for ($($name,)*) {
            type In<'b> = ($($name::In<'b>,)*);

            fn leaves(&self, out: &mut Vec<Op<'g>>) {
                $(self.$index.leaves(out);)*
            }

            fn names(&self, path: &str, out: &mut Vec<String>) {
                $(self.$index.names(&join(path, stringify!($index)), out);)*
            }

            fn rebuild<'b>(&self, leaves: &mut dyn Iterator<Item = Op<'b>>) -> Self::In<'b> {
                ($(self.$index.rebuild(leaves),)*)
            }
        }
    )*};
}
tuple_trees! {
    (A 0, B 1);
    (A 0, B 1, C 2);
    (A 0, B 1, C 2, D 3);
}

/// Joins the names of a field and of one in it.
pub fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// Implements [`Tree`] for a struct with one lifetime: its fields that are trees, and those that
/// are kept as they are.
#[macro_export]
macro_rules! tree {
    ($type:ident { $($field:ident),* $(,)? } $(keeping { $($kept:ident),* })?) => {
        impl<'g> $crate::hlo::Tree<'g> for $type<'g> {
            type In<'b> = $type<'b>;

            fn leaves(&self, out: &mut Vec<$crate::hlo::Op<'g>>) {
                $($crate::hlo::Tree::leaves(&self.$field, out);)*
            }

            fn names(&self, path: &str, out: &mut Vec<String>) {
                $($crate::hlo::Tree::names(&self.$field, &$crate::hlo::join(path, stringify!($field)), out);)*
            }

            fn rebuild<'b>(&self, leaves: &mut dyn Iterator<Item = $crate::hlo::Op<'b>>) -> $type<'b> {
                $type {
                    $($field: $crate::hlo::Tree::rebuild(&self.$field, leaves),)*
                    $($($kept: self.$kept.clone(),)*)?
                }
            }
        }
    };
}
