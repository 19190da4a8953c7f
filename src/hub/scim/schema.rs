//! The attributes that are kept of a resource: bodies are read, filters compare and `/Schemas` answers by them.

use serde_json::{Map, Value, json};

use super::error::ScimError;

/// The schema of users.
pub const USER: &str = "urn:ietf:params:scim:schemas:core:2.0:User";
/// The schema of groups.
pub const GROUP: &str = "urn:ietf:params:scim:schemas:core:2.0:Group";

/// Bytes of a text.
pub const MAX_TEXT_BYTES: usize = 1_024;
/// Bytes of a text that only a provider's configuration names.
const MAX_EXTRA_BYTES: usize = 256;
/// E-mail addresses of a user.
const MAX_EMAILS: usize = 16;

/// The type of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttributeType {
    Text {
        max_bytes: usize,
    },
    Boolean,
    DateTime,
    /// The address of a resource of these types.
    Reference(&'static [&'static str]),
    Complex(Vec<Attribute>),
}

/// An attribute that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    pub name: String,
    pub kind: AttributeType,
    /// At most so many values; `None`: one, and no list.
    pub many: Option<usize>,
    pub is_required: bool,
    /// The service decides it.
    pub is_read_only: bool,
    /// It is set with the element of the list that it is in.
    is_immutable: bool,
    /// Compared with case.
    pub is_case_exact: bool,
    pub is_unique: bool,
    /// The only values that it has.
    canonical: &'static [&'static str],
    description: &'static str,
}

fn attribute(name: &str, kind: AttributeType, description: &'static str) -> Attribute {
    Attribute {
        name: name.to_owned(),
        kind,
        many: None,
        is_required: false,
        is_read_only: false,
        is_immutable: false,
        is_case_exact: false,
        is_unique: false,
        canonical: &[],
        description,
    }
}

fn text(name: &str, description: &'static str) -> Attribute {
    attribute(name, AttributeType::Text { max_bytes: MAX_TEXT_BYTES }, description)
}

impl Attribute {
    fn many(self, most: usize) -> Self {
        Self { many: Some(most), ..self }
    }

    fn required(self) -> Self {
        Self { is_required: true, ..self }
    }

    fn read_only(self) -> Self {
        Self { is_read_only: true, ..self }
    }

    fn immutable(self) -> Self {
        Self { is_immutable: true, ..self }
    }

    fn case_exact(self) -> Self {
        Self { is_case_exact: true, ..self }
    }

    fn unique(self) -> Self {
        Self { is_unique: true, ..self }
    }

    /// Its attributes, if it is complex.
    pub fn parts(&self) -> &[Attribute] {
        match &self.kind {
            AttributeType::Complex(parts) => parts,
            _ => &[],
        }
    }

    /// One of its attributes, by a name in any case.
    pub fn part(&self, name: &str) -> Option<&Attribute> {
        find(self.parts(), name)
    }

    fn json(&self) -> Value {
        let name = match self.kind {
            AttributeType::Text { .. } => "string",
            AttributeType::Boolean => "boolean",
            AttributeType::DateTime => "dateTime",
            AttributeType::Reference(_) => "reference",
            AttributeType::Complex(_) => "complex",
        };
        let mut described = json!({
            "name": self.name,
            "type": name,
            "multiValued": self.many.is_some(),
            "description": self.description,
            "required": self.is_required,
            "caseExact": self.is_case_exact,
            "mutability": match (self.is_read_only, self.is_immutable) {
                (true, _) => "readOnly",
                (_, true) => "immutable",
                _ => "readWrite",
            },
            "returned": "default",
            "uniqueness": if self.is_unique { "server" } else { "none" },
        });
        if let Some(members) = described.as_object_mut() {
            if !self.parts().is_empty() {
                members.insert("subAttributes".to_owned(), self.parts().iter().map(Self::json).collect());
            }
            if !self.canonical.is_empty() {
                members.insert("canonicalValues".to_owned(), json!(self.canonical));
            }
            if let AttributeType::Reference(types) = self.kind {
                members.insert("referenceTypes".to_owned(), json!(types));
            }
        }
        described
    }

    /// Reads a value; `None` for one that is absent, as null and empty lists are.
    ///
    /// # Errors
    /// It is of another type, or too long.
    pub fn read(&self, value: &Value) -> Result<Option<Value>, ScimError> {
        match (self.many, value) {
            (_, Value::Null) => Ok(None),
            (Some(_), Value::Array(items)) => {
                let read: Vec<_> = items.iter().map(|item| self.read_one(item)).collect::<Result<_, _>>()?;
                let read: Vec<_> = read.into_iter().flatten().collect();
                self.check_count(read.len())?;
                Ok((!read.is_empty()).then_some(Value::Array(read)))
            }
            // One value in the place of a list of one, as some clients send it.
            (Some(_), one) => Ok(self.read_one(one)?.map(|one| json!([one]))),
            (None, one) => self.read_one(one),
        }
    }

    fn read_one(&self, value: &Value) -> Result<Option<Value>, ScimError> {
        match (&self.kind, value) {
            (_, Value::Null) => Ok(None),
            (AttributeType::Text { max_bytes }, Value::String(text)) if text.len() <= *max_bytes => {
                Ok(Some(value.clone()))
            }
            (AttributeType::Text { max_bytes }, Value::String(_)) => {
                Err(self.wrong(&format!("more than {max_bytes} bytes")))
            }
            (AttributeType::Boolean, Value::Bool(_)) => Ok(Some(value.clone())),
            // As Entra sends them.
            (AttributeType::Boolean, Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(Some(json!(true))),
            (AttributeType::Boolean, Value::String(text)) if text.eq_ignore_ascii_case("false") => {
                Ok(Some(json!(false)))
            }
            (AttributeType::Boolean, _) => Err(self.wrong("expected true or false")),
            (AttributeType::Complex(parts), Value::Object(members)) => {
                let read = read_members(parts, members)?;
                Ok((!read.is_empty()).then_some(Value::Object(read)))
            }
            (AttributeType::Complex(_), _) => Err(self.wrong("expected an object")),
            (AttributeType::DateTime | AttributeType::Reference(_), _) => Ok(None),
            (AttributeType::Text { .. }, _) => Err(self.wrong("expected a string")),
        }
    }

    /// # Errors
    /// A list has no room for so many values.
    pub fn check_count(&self, count: usize) -> Result<(), ScimError> {
        match self.many {
            Some(most) if count > most => Err(self.wrong(&format!("more than {most} values"))),
            _ => Ok(()),
        }
    }

    fn wrong(&self, message: &str) -> ScimError {
        ScimError::value(format!("`{}`: {message}", self.name))
    }
}

/// The attribute of this name, in any case.
pub fn find<'a>(attributes: &'a [Attribute], name: &str) -> Option<&'a Attribute> {
    attributes.iter().find(|attribute| attribute.name.eq_ignore_ascii_case(name))
}

/// Reads the members of an object under their own names. Those that are not kept are dropped, and those that the service decides.
fn read_members(attributes: &[Attribute], members: &Map<String, Value>) -> Result<Map<String, Value>, ScimError> {
    let mut read = Map::new();
    for (name, value) in members {
        let Some(attribute) = find(attributes, name).filter(|attribute| !attribute.is_read_only) else { continue };
        if members.keys().filter(|other| other.eq_ignore_ascii_case(name)).count() > 1 {
            return Err(ScimError::syntax(format!("`{}` stands twice", attribute.name)));
        }
        if let Some(value) = attribute.read(value)? {
            read.insert(attribute.name.clone(), value);
        }
    }
    Ok(read)
}

/// A schema with its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    pub urn: String,
    pub attributes: Vec<Attribute>,
    description: &'static str,
}

/// The type of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResourceType {
    User,
    Group,
}

impl ResourceType {
    pub const ALL: [Self; 2] = [Self::User, Self::Group];

    pub fn name(self) -> &'static str {
        match self {
            Self::User => "User",
            Self::Group => "Group",
        }
    }

    /// The last part of its address.
    pub fn endpoint(self) -> &'static str {
        match self {
            Self::User => "Users",
            Self::Group => "Groups",
        }
    }

    /// In keys of tables.
    pub fn code(self) -> u8 {
        match self {
            Self::User => b'U',
            Self::Group => b'G',
        }
    }
}

/// The schemas of a provider's resources.
#[derive(Clone, Debug)]
pub struct Schemas {
    user: Schema,
    group: Schema,
    /// Schemas of users for the attributes that the configuration names.
    extensions: Vec<Schema>,
}

impl Schemas {
    /// The schemas with further attributes of users: `nickName`, or `urn:…:User:employeeNumber`.
    pub fn new(extra: &[String]) -> Self {
        let mut schemas = Self { user: user(), group: group(), extensions: Vec::new() };
        let described = |name: &str| Attribute {
            is_case_exact: true,
            ..attribute(
                name,
                AttributeType::Text { max_bytes: MAX_EXTRA_BYTES },
                "Named by the configuration, for links",
            )
        };
        for name in extra {
            match name.rsplit_once(':') {
                Some((urn, name)) if !urn.eq_ignore_ascii_case(USER) => {
                    let at = match schemas.extensions.iter().position(|known| known.urn == urn) {
                        Some(at) => at,
                        None => {
                            schemas.extensions.push(Schema {
                                urn: urn.to_owned(),
                                attributes: Vec::new(),
                                description: "Further attributes of users",
                            });
                            schemas.extensions.len().saturating_sub(1)
                        }
                    };
                    schemas.extensions.get_mut(at).into_iter().for_each(|known| known.attributes.push(described(name)));
                }
                Some((_, name)) => schemas.user.attributes.push(described(name)),
                None => schemas.user.attributes.push(described(name)),
            }
        }
        schemas
    }

    pub fn of(&self, kind: ResourceType) -> &Schema {
        match kind {
            ResourceType::User => &self.user,
            ResourceType::Group => &self.group,
        }
    }

    pub fn extensions(&self, kind: ResourceType) -> &[Schema] {
        match kind {
            ResourceType::User => &self.extensions,
            ResourceType::Group => &[],
        }
    }

    /// The schema and the attribute of a name, which may have the schema before it.
    pub fn find(&self, kind: ResourceType, urn: Option<&str>, name: &str) -> Option<(&Schema, &Attribute)> {
        let own = self.of(kind);
        let schema = match urn {
            None => own,
            Some(urn) if own.urn.eq_ignore_ascii_case(urn) => own,
            Some(urn) => self.extensions(kind).iter().find(|known| known.urn.eq_ignore_ascii_case(urn))?,
        };
        Some((schema, find(&schema.attributes, name)?))
    }

    /// Reads a body: what is kept of it, under names as they are here.
    ///
    /// # Errors
    /// A value is of another type, or too long.
    pub fn read(&self, kind: ResourceType, body: &Map<String, Value>) -> Result<Map<String, Value>, ScimError> {
        let mut read = read_members(&self.of(kind).attributes, body)?;
        for extension in self.extensions(kind) {
            let Some(members) = body.iter().find(|(name, _)| name.eq_ignore_ascii_case(&extension.urn)) else {
                continue;
            };
            let Some(members) = members.1.as_object() else {
                return Err(ScimError::value(format!("`{}`: expected an object", extension.urn)));
            };
            let members = read_members(&extension.attributes, members)?;
            if !members.is_empty() {
                read.insert(extension.urn.clone(), Value::Object(members));
            }
        }
        Ok(read)
    }

    /// The answer of `/Schemas`, each with its name.
    pub fn described(&self, base: &str) -> Vec<Value> {
        let described = |schema: &Schema, name: &str| {
            json!({
                "schemas": ["urn:ietf:params:scim:schemas:core:2.0:Schema"],
                "id": schema.urn,
                "name": name,
                "description": schema.description,
                // Every resource has these; none of RFC 7643's own schemas lists them.
                "attributes": schema.attributes.iter().filter(|known| !is_common(&known.name)).map(Attribute::json).collect::<Value>(),
                "meta": {"resourceType": "Schema", "location": format!("{base}/Schemas/{}", schema.urn)},
            })
        };
        let extensions = self.extensions.iter().map(|schema| described(schema, "UserExtension"));
        [described(&self.user, "User"), described(&self.group, "Group")].into_iter().chain(extensions).collect()
    }
}

/// Attributes that every resource has.
fn is_common(name: &str) -> bool {
    ["id", "externalId", "meta"].contains(&name)
}

fn common() -> Vec<Attribute> {
    let reference = attribute("location", AttributeType::Reference(&["uri"]), "The address").read_only().case_exact();
    let meta = vec![
        text("resourceType", "The type").read_only().case_exact(),
        attribute("created", AttributeType::DateTime, "When it was created").read_only(),
        attribute("lastModified", AttributeType::DateTime, "When it was last changed").read_only(),
        reference,
    ];
    vec![
        text("id", "The identifier that this service gave").read_only().case_exact().unique(),
        text("externalId", "The identifier that the client gave").case_exact(),
        attribute("meta", AttributeType::Complex(meta), "About the resource").read_only(),
    ]
}

fn user() -> Schema {
    let name = vec![
        text("formatted", "The whole name"),
        text("familyName", "The family name"),
        text("givenName", "The given name"),
    ];
    let email = vec![
        text("value", "The address"),
        text("type", "Such as work or home"),
        attribute("primary", AttributeType::Boolean, "The preferred one"),
    ];
    let group = vec![
        text("value", "The identifier of the group").read_only().case_exact(),
        attribute("$ref", AttributeType::Reference(&["Group"]), "The address of the group").read_only().case_exact(),
        text("display", "The name of the group").read_only(),
    ];
    let own = vec![
        text("userName", "The name with which the user signs in").required().unique(),
        attribute("name", AttributeType::Complex(name), "The name of the person"),
        text("displayName", "The name that is shown"),
        // Every user has it, so that it is never absent: without it in a request it is true at first, and then as it was.
        attribute("active", AttributeType::Boolean, "False: tokens of the user are rejected").required(),
        attribute("emails", AttributeType::Complex(email), "E-mail addresses").many(MAX_EMAILS),
        attribute("groups", AttributeType::Complex(group), "Groups of which the user is a member")
            .many(usize::MAX)
            .read_only(),
    ];
    Schema { urn: USER.to_owned(), attributes: [common(), own].concat(), description: "User" }
}

fn group() -> Schema {
    let member = vec![
        text("value", "The identifier of the user").immutable().case_exact(),
        attribute("$ref", AttributeType::Reference(&["User"]), "The address of the user").immutable().case_exact(),
        Attribute { canonical: &["User"], ..text("type", "The type of the member").immutable().case_exact() },
    ];
    let own = vec![
        text("displayName", "The name of the group").required(),
        attribute("members", AttributeType::Complex(member), "The members").many(usize::MAX),
    ];
    Schema { urn: GROUP.to_owned(), attributes: [common(), own].concat(), description: "Group" }
}
