//! Fields: what a value is, where it is kept, and who may write it.

use super::Resource;

/// What a field's value is.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Text, at most so many characters (0: no limit).
    Text(usize),
    /// JSON or YAML text of variables; an object is taken too and kept as JSON text.
    Variables,
    /// A whole number, between these bounds.
    Int(i64, i64),
    /// A number with a fraction.
    Float,
    /// True or false.
    Bool,
    /// One of these texts, each with its label.
    Choice(&'static [(&'static str, &'static str)]),
    /// One of these numbers, each with its label.
    IntChoice(&'static [(i64, &'static str)]),
    /// Any JSON, kept as text.
    Json,
    /// A moment.
    Time,
    /// An object of another family.
    Id(&'static Resource),
}

/// Who may write a field.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Clients read and write it.
    ReadWrite,
    /// Clients read it.
    ReadOnly,
    /// Clients write it and never see it again.
    WriteOnly,
}

/// What a field has when it is not given.
#[derive(Clone, Copy)]
pub enum Preset {
    /// The empty text, zero, false or null.
    Empty,
    /// This text.
    Text(&'static str),
    /// This number.
    Int(i64),
    /// True.
    True,
}

/// One field of a resource.
#[derive(Clone, Copy)]
pub struct Field {
    /// Its name in the API.
    pub name: &'static str,
    /// What its value is.
    pub kind: Kind,
    /// What people call it; empty: made from the name.
    pub label: &'static str,
    /// One sentence for OPTIONS.
    pub help: &'static str,
    /// Must be given at creation.
    pub required: bool,
    /// May be null.
    pub null: bool,
    /// What it has when it is not given.
    pub preset: Preset,
    /// Who may write it.
    pub mode: Mode,
    /// Kept in the parent table.
    pub shared: bool,
    /// Kept in no column: filled in beside the resource's rules, and never part of a filter.
    pub computed: bool,
    /// Not in lists.
    pub detail: bool,
    /// A filter may use it.
    pub filterable: bool,
    /// Shown as `$encrypted$`; a filter is refused.
    pub secret: bool,
    /// Column other than the name (and `_id`).
    pub column: Option<&'static str>,
}

impl Field {
    const fn new(name: &'static str, kind: Kind) -> Self {
        Self {
            name,
            kind,
            label: "",
            help: "",
            required: false,
            null: false,
            preset: Preset::Empty,
            mode: Mode::ReadWrite,
            shared: false,
            computed: false,
            detail: false,
            filterable: true,
            secret: false,
            column: None,
        }
    }

    /// Must be given at creation.
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// May be null.
    pub const fn null(mut self) -> Self {
        self.null = true;
        self
    }

    /// Clients cannot write it.
    pub const fn read_only(mut self) -> Self {
        self.mode = Mode::ReadOnly;
        self
    }

    /// Clients cannot read it.
    pub const fn write_only(mut self) -> Self {
        self.mode = Mode::WriteOnly;
        self.filterable = false;
        self
    }

    /// Is in the parent table.
    pub const fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// Is in no column.
    pub const fn computed(mut self) -> Self {
        self.computed = true;
        self.filterable = false;
        self
    }

    /// Is not in lists.
    pub const fn detail(mut self) -> Self {
        self.detail = true;
        self
    }

    /// No filter may use it.
    pub const fn unfilterable(mut self) -> Self {
        self.filterable = false;
        self
    }

    /// Is never shown.
    pub const fn secret(mut self) -> Self {
        self.secret = true;
        self.filterable = false;
        self
    }

    /// At most so many characters.
    pub const fn max(mut self, characters: usize) -> Self {
        self.kind = Kind::Text(characters);
        self
    }

    /// Between these, both included.
    pub const fn range(mut self, least: i64, most: i64) -> Self {
        self.kind = Kind::Int(least, most);
        self
    }

    /// What it has when it is not given.
    pub const fn preset(mut self, preset: Preset) -> Self {
        self.preset = preset;
        self
    }

    /// One sentence for OPTIONS.
    pub const fn help(mut self, help: &'static str) -> Self {
        self.help = help;
        self
    }

    /// What people call it.
    pub const fn label(mut self, label: &'static str) -> Self {
        self.label = label;
        self
    }

    /// Its column.
    pub const fn column(mut self, column: &'static str) -> Self {
        self.column = Some(column);
        self
    }

    /// Name of its column.
    pub fn column_name(&self) -> String {
        match (self.column, self.kind) {
            (Some(column), _) => column.to_owned(),
            (None, Kind::Id(_)) => format!("{}_id", self.name),
            (None, _) => self.name.to_owned(),
        }
    }

    /// What people call it.
    pub fn shown_label(&self) -> String {
        if self.label.is_empty() { label_of(self.name) } else { self.label.to_owned() }
    }
}

/// `scm_branch` → `SCM Branch`.
pub fn label_of(name: &str) -> String {
    let word = |word: &str| match word {
        "id" | "scm" | "url" | "ip" | "cpu" | "uuid" => word.to_uppercase(),
        _ => {
            let mut letters = word.chars();
            letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
        }
    };
    name.split('_').map(word).collect::<Vec<String>>().join(" ")
}

/// Text of at most 1,024 characters.
pub const fn text(name: &'static str) -> Field {
    Field::new(name, Kind::Text(1024))
}

/// Text without a limit of its own.
pub const fn long_text(name: &'static str) -> Field {
    Field::new(name, Kind::Text(0))
}

/// Variables.
pub const fn variables(name: &'static str) -> Field {
    Field::new(name, Kind::Variables)
}

/// A whole number from 0.
pub const fn int(name: &'static str) -> Field {
    Field::new(name, Kind::Int(0, 2_147_483_647))
}

/// A number with a fraction.
pub const fn float(name: &'static str) -> Field {
    Field::new(name, Kind::Float)
}

/// True or false.
pub const fn flag(name: &'static str) -> Field {
    Field::new(name, Kind::Bool)
}

/// One of these texts.
pub const fn choice(name: &'static str, choices: &'static [(&'static str, &'static str)]) -> Field {
    Field::new(name, Kind::Choice(choices))
}

/// One of these numbers.
pub const fn int_choice(name: &'static str, choices: &'static [(i64, &'static str)]) -> Field {
    Field::new(name, Kind::IntChoice(choices))
}

/// Any JSON.
pub const fn json(name: &'static str) -> Field {
    Field::new(name, Kind::Json)
}

/// A moment, which clients only read; may be null.
pub const fn time(name: &'static str) -> Field {
    Field::new(name, Kind::Time).null().read_only()
}

/// Another object; may be null unless required.
pub const fn id(name: &'static str, of: &'static Resource) -> Field {
    Field::new(name, Kind::Id(of)).null()
}

/// The name every object has: at most 512 characters, required.
pub const fn name() -> Field {
    Field::new("name", Kind::Text(512)).required()
}

/// The description every object may have.
pub const fn description() -> Field {
    Field::new("description", Kind::Text(0)).help("Optional description.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_made_from_names() {
        assert_eq!(label_of("scm_branch"), "SCM Branch");
        assert_eq!(label_of("name"), "Name");
        assert_eq!(text("job_tags").label("Tags").shown_label(), "Tags");
    }

    #[test]
    fn relations_are_kept_in_id_columns() {
        assert_eq!(id("organization", &super::super::ORGANIZATIONS).column_name(), "organization_id");
        assert_eq!(text("limit").column_name(), "limit");
    }
}
