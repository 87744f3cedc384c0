//! The outcomes that the design names, and phrases that a simple search would get wrong.

use Category::{Backend, Schema, Types, Ui};
use proptest::prelude::*;

use super::*;

/// Passing over bytes finds the delimiters that letters are, and no others.
#[test]
fn delimiters_are_found() {
    for c in (0..0x1_1000).filter_map(char::from_u32) {
        let text = format!("a{c}ä");
        let found = plan::until_delimiter(&text);
        let wanted = if plan::is_delimiter(c) { ("a", Some(c), "ä") } else { (text.as_str(), None, "") };
        assert_eq!(found, wanted, "{c:?}");
    }
}

#[test]
fn paths() {
    let table: [(&str, Option<Category>); 46] = [
        // As the design has them.
        ("migrations/001_create_users.sql", Some(Schema)),
        ("src/types/user.ts", Some(Types)),
        ("src/api/users.rs", Some(Backend)),
        ("src/components/UserProfile.tsx", Some(Ui)),
        // Schema.
        ("db/schema.rb", Some(Schema)),
        ("prisma/seed.ts", Some(Schema)),
        ("drizzle.config.ts", Some(Schema)),
        ("src/db/userSchema.ts", Some(Schema)),
        ("backend/DBMigrationRunner.java", Some(Schema)),
        ("queries/report.SQL", Some(Schema)),
        ("src/types/schema.ts", Some(Schema)),
        ("C:\\app\\migrations\\001.cs", Some(Schema)),
        ("src/immigration/office.py", Some(Backend)),
        // Types.
        ("src/models/user.py", Some(Types)),
        ("src/entities/", Some(Types)),
        ("src/models.rs", Some(Types)),
        ("global.d.ts", Some(Types)),
        ("lib/types.go", Some(Types)),
        ("src/components/types.ts", Some(Types)),
        ("src/api/types.tsx", Some(Types)),
        ("types", Some(Types)),
        ("src/prototypes/a.go", Some(Backend)),
        ("src/user_models.rs", Some(Backend)),
        // UI before backend.
        ("src/server/App.tsx", Some(Ui)),
        ("ui/handlers.rs", Some(Ui)),
        ("app/views/users.py", Some(Ui)),
        ("pages/index.js", Some(Ui)),
        ("a.vue", Some(Ui)),
        ("a.svelte", Some(Ui)),
        ("a.JSX", Some(Ui)),
        ("src/reviews/a.go", Some(Backend)),
        // Backend.
        ("src/server/index.ts", Some(Backend)),
        ("src/routes/users.ts", Some(Backend)),
        ("app/controllers/users_controller.rb", Some(Backend)),
        ("src/services/mail.ts", Some(Backend)),
        ("main.go", Some(Backend)),
        ("tool.py", Some(Backend)),
        ("src/lib.rs", Some(Backend)),
        ("src/api", Some(Backend)),
        // Nothing known.
        ("README.md", None),
        ("Cargo.toml", None),
        ("scripts/deploy.sh", None),
        ("src/util/strings.ts", None),
        ("", None),
        ("///", None),
        ("…/été/ü", None),
    ];
    for (path, category) in table {
        assert_eq!(categorize_path(path), category, "{path}");
    }
    assert_eq!(rank(None), Backend);
    assert_eq!(rank(Some(Ui)), Ui);
}

#[test]
fn plans() {
    let table: &[(&str, &[Category])] = &[
        // As the design has them.
        ("Create a new migration to add the users table", &[Schema]),
        ("Implement the UserProfile component with React", &[Ui]),
        ("Add migration to create users table", &[Schema]),
        // Words are words.
        ("Review the pull request and preview the result", &[]),
        ("Make the platform print more information", &[]),
        ("Describe the prototypes and the immigration office", &[]),
        ("Perform the transformation; reform the format", &[]),
        ("The archetypes of homepages", &[]),
        ("Rapid apiary service-free", &[Backend]),
        // Neighbours.
        ("Improve the command line interface", &[]),
        ("Polish the user interface", &[Ui]),
        ("Declare a TypeScript interface for users", &[Types]),
        ("Try another language model", &[]),
        ("Define the User model", &[Types]),
        ("Count what the user types into the box", &[]),
        ("Support all types of queries", &[]),
        ("Write the shared types", &[Types]),
        ("Write the type definitions", &[Types]),
        ("Open the man page, look at page size and per page limits", &[]),
        ("Add a landing page", &[Ui]),
        ("Let people view the logs", &[]),
        ("Add a list view", &[Ui]),
        ("A database view would help", &[]),
        ("Use the short form of the name, in the form of a list", &[]),
        ("Validate the sign-up form", &[Ui]),
        ("React to every event", &[]),
        ("Attach a click handler", &[]),
        ("Write the login handler", &[Backend]),
        ("Rotate the API key", &[]),
        ("Document the JSON schema of the config", &[]),
        ("Change the memory layout", &[]),
        ("Change the page layout", &[Ui]),
        ("Read the terms of service", &[]),
        ("Split out a mail service", &[Backend]),
        ("Let the cache rest", &[]),
        ("Offer it over REST", &[Backend]),
        ("Rework the front end", &[Ui]),
        ("Rework the back-end", &[Backend]),
        ("Add an index and a foreign key", &[Schema]),
        ("Add a sortable table", &[]),
        ("Add the orders table component", &[Ui]),
        ("Add a database table", &[Schema]),
        // Names in code: the last part says what it is.
        ("Implement LoginForm", &[Ui]),
        ("Read FormData", &[]),
        ("Implement UserController and OpenAPI", &[Backend]),
        ("Add ReviewBoard to the Platform", &[]),
        // Several.
        ("Add the migration, the endpoints and the settings page", &[Schema, Backend, Ui]),
        ("Touch schema/types/backend/UI", &[Schema, Types, Backend, Ui]),
        ("The client/server split", &[Backend]),
        // Paths and SQL count more than prose.
        ("Edit src/components/UserProfile.tsx so that it shows what the API says", &[Ui]),
        ("Edit `src/api/users.rs:42`, called by the page.", &[Backend]),
        ("Write migrations/001.sql. Then the handler, the route and the service for it", &[Schema, Backend]),
        ("See [the types](src/types/user.ts), (src/api/a.go) and \"app/pages/[id]/page.tsx\"", &[Backend, Ui]),
        ("Run: CREATE TABLE users (id INT);", &[Schema]),
        ("CREATE OR REPLACE VIEW active AS SELECT 1", &[Schema]),
        ("create table if not exists user_names (id int)", &[Schema]),
        ("create unique things", &[]),
        ("alter table users add column age int", &[Schema]),
        ("Create table UsersTable component (with sorting)", &[Ui]),
        ("mkdir -p src/types && echo 'export type A = 1' > src/types/a.ts", &[Types]),
        ("Fetch https://example.com/api/components/schema.sql", &[]),
        ("GET /api/users must answer 200", &[Backend]),
        ("Rename .tsx files", &[Ui]),
        ("Write it in Vue.js", &[Ui]),
        ("Write it in Node.js, e.g. with v1.2 of README.md", &[]),
        ("Update README.md", &[]),
        ("Use TCP/IP and/or UDP", &[]),
        // What is only read.
        ("Implement the UserProfile component using the types from src/types/user.ts", &[Ui]),
        ("Generate src/types/user.ts from migrations/001.sql", &[Types]),
        ("Build the settings page based on the users API", &[Ui]),
        ("Write the handlers as defined in schema.prisma", &[Backend]),
        ("Learn from migrations/001.sql", &[Schema]),
        // What is not to be done.
        ("Add the page. Do not change the schema or the API.", &[Ui]),
        ("Without touching the UI, add an endpoint", &[Backend]),
        ("Don't edit src/api/users.rs, only the sidebar", &[Ui]),
        ("Not only the UI but also the API", &[Backend, Ui]),
        ("Never mind.\n\n- the schema\n- the page", &[Schema, Ui]),
        // Nothing, and odd text.
        ("", &[]),
        ("Fix the flaky test", &[]),
        ("Überprüfe die Größe … 漢字/かな 🦀.rs", &[Backend]),
        ("'' `` // ./ .. @ ~ :// ( [ {", &[]),
    ];
    let wrong: Vec<_> = (table.iter())
        .map(|(plan, expected)| (*plan, categorize_plan("t", plan), *expected))
        .filter(|(_, found, expected)| found != expected)
        .collect();
    assert!(wrong.is_empty(), "(plan, found, expected): {wrong:#?}");
}

/// A name is chosen to say what a task is; it counts even beside paths.
#[test]
fn names_count() {
    assert_eq!(categorize_plan("users-migration", "Do what the issue says"), [Schema]);
    assert_eq!(categorize_plan("user_profile_ui", "Do what the issue says"), [Ui]);
    assert_eq!(categorize_plan("UserFormPage", "Do it"), [Ui]);
    assert_eq!(categorize_plan("backend", "Edit src/types/user.ts"), [Types, Backend]);
    assert_eq!(categorize_plan("backend-review", "Build what lists users from the schema"), [Backend]);
    assert_eq!(categorize_plan("platform-information", ""), []);
}

#[test]
fn a_migration_comes_before_the_component_that_shows_it() {
    let component = categorize_plan("profile", "Implement the UserProfile component with React");
    let migration = categorize_plan("users", "Add migration to create users table");
    let others = [("users", migration.as_slice())];
    let expected = Violation { task: "profile", on: "users", mine: Ui, theirs: Schema };
    assert_eq!(violations("profile", &component, others), [expected]);
    let edge = Suggestion { task: "profile", on: "users", lowest: Ui, highest: Schema };
    assert_eq!(suggest("profile", &component, others), [edge]);
    assert_eq!(violations("users", &migration, [("profile", component.as_slice())]), []);
    assert_eq!(suggest("users", &migration, [("profile", component.as_slice())]), []);
    assert_eq!(
        expected.reason("users"),
        "this task begins with ui and does not wait for `users`, which touches schema and is unfinished"
    );
    assert_eq!(edge.reason("users"), "`users` touches nothing after schema, this task begins with ui");
}

#[test]
fn a_suggestion_needs_all_of_the_other_before_all_of_mine() {
    let others: [(u32, &[Category]); 6] =
        [(1, &[Schema]), (2, &[Schema, Ui]), (3, &[Types]), (4, &[Types, Backend]), (5, &[]), (6, &[Backend])];
    let suggested: Vec<u32> = suggest(0, &[Backend, Ui], others).into_iter().map(|s| s.on).collect();
    assert_eq!(suggested, [1, 3]);
    let violated: Vec<u32> = violations(0, &[Backend, Ui], others).into_iter().map(|v| v.on).collect();
    assert_eq!(violated, [1, 2, 3, 4]);
    assert_eq!(suggest(0, &[], others), []);
    assert_eq!(violations(0, &[], others), []);
}

fn subject(categories: &[Category], depends_on: &[usize]) -> Subject {
    Subject { categories: categories.to_vec(), depends_on: depends_on.to_vec(), status: TaskStatus::Pending }
}

type Pairs = Vec<(usize, usize)>;

fn pairs(analysis: &Analysis) -> (Pairs, Pairs) {
    let suggestions = analysis.suggestions.iter().map(|s| (s.task, s.on)).collect();
    (suggestions, analysis.violations.iter().map(|v| (v.task, v.on)).collect())
}

#[test]
fn a_contract_is_analyzed_as_a_whole() {
    let mut tasks = [subject(&[Schema], &[]), subject(&[Types], &[0]), subject(&[Backend], &[1]), subject(&[Ui], &[])];
    // The backend waits for the schema by way of the types.
    let all = vec![(3, 0), (3, 1), (3, 2)];
    assert_eq!(pairs(&analyze(&tasks)), (all.clone(), all));
    // What is over is waited for by nobody; what runs is, and waits for nothing itself.
    tasks[0].status = TaskStatus::Done;
    tasks[1].status = TaskStatus::Failed;
    tasks[2].status = TaskStatus::Running;
    assert_eq!(pairs(&analyze(&tasks)), (vec![(3, 2)], vec![(3, 2)]));
    tasks[3].status = TaskStatus::Running;
    assert_eq!(pairs(&analyze(&tasks)), (vec![], vec![]));
}

/// Explicit edges decide, even when each suggestion alone would be fine.
#[test]
fn suggestions_never_close_a_cycle() {
    let tasks = [subject(&[Schema], &[1]), subject(&[Ui], &[])];
    assert_eq!(pairs(&analyze(&tasks)), (vec![], vec![(1, 0)]));
    // Each schema waits for a UI: any two suggestions across would make a circle.
    let tasks = [subject(&[Schema], &[1]), subject(&[Ui], &[]), subject(&[Schema], &[3]), subject(&[Ui], &[])];
    let (suggestions, violations) = pairs(&analyze(&tasks));
    assert_eq!(suggestions, []);
    assert_eq!(violations.len(), 4);
}

#[test]
fn dependencies_decide_whether_a_task_can_start() {
    assert_eq!(can_start::<&str>([]), Ok(()));
    assert_eq!(can_start([("a", TaskStatus::Done), ("b", TaskStatus::Merged)]), Ok(()));
    assert_eq!(can_start([("a", TaskStatus::Done), ("b", TaskStatus::Running)]), Err(vec!["b"]));
    for status in TaskStatus::ALL {
        assert_eq!(can_start([((), status)]).is_ok(), matches!(status, TaskStatus::Done | TaskStatus::Merged));
    }
}

/// The largest plan, of the worst kinds of text, is read in one pass. A quadratic step would take hours, so the bound can be
/// wide enough for a busy machine.
#[test]
fn the_largest_plans_are_read_at_once() {
    let largest = 512 * 1024;
    for piece in ["create table ", "/", "a", "aB", "a/b.rs ", "not only ", "(", "é", "CREATE ", "\n", "x_y-z.ts:"] {
        let plan: String = piece.repeat(largest / piece.len());
        let begun = std::time::Instant::now();
        categorize_plan(&plan[..piece.len()], &plan);
        assert!(begun.elapsed().as_secs() < 60, "{piece:?} took {:?}", begun.elapsed());
    }
}

proptest! {
    /// Whatever is written, the answer is sorted, without repetition, and the same every time.
    #[test]
    fn any_text_has_categories(name in ".{0,40}", plan in "(?s).{0,400}") {
        let categories = categorize_plan(&name, &plan);
        prop_assert!(categories.is_sorted_by(|a, b| a < b));
        prop_assert_eq!(&categories, &categorize_plan(&name, &plan));
        let _ = categorize_path(&plan);
    }

    /// All suggestions together, with the edges that are there, can be put in an order.
    #[test]
    fn suggestions_can_all_be_taken(
        tasks in prop::collection::vec((prop::collection::btree_set(0_usize..4, 0..4), any::<u16>()), 1..12)
    ) {
        let tasks: Vec<Subject> = (tasks.into_iter().enumerate())
            .map(|(me, (set, edges))| Subject {
                categories: set.into_iter().map(|i| Category::ALL[i]).collect(),
                depends_on: (0..me).filter(|on| edges >> on & 1 == 1).collect(),
                status: TaskStatus::Pending,
            })
            .collect();
        let explicit = tasks.iter().enumerate().flat_map(|(me, t)| t.depends_on.iter().map(move |&on| (me, on)));
        let analysis = analyze(&tasks);
        let edges: Vec<_> = explicit.chain(analysis.suggestions.iter().map(|s| (s.task, s.on))).collect();
        prop_assert!(crate::domain::dependency::order(tasks.len(), &edges).is_ok());
    }

    /// Suggestions lead from higher to lower categories only, so they never make a cycle among themselves; and whoever is
    /// suggested is also a violation while it is unfinished.
    #[test]
    fn suggestions_are_violations(tasks in prop::collection::vec(prop::collection::btree_set(0_usize..4, 0..4), 1..12)) {
        let tasks: Vec<Vec<Category>> =
            tasks.into_iter().map(|set| set.into_iter().map(|i| Category::ALL[i]).collect()).collect();
        for (me, mine) in tasks.iter().enumerate() {
            let others = || tasks.iter().enumerate().filter(|(i, _)| *i != me).map(|(i, t)| (i, t.as_slice()));
            let violated: Vec<usize> = violations(me, mine, others()).into_iter().map(|v| v.on).collect();
            for suggestion in suggest(me, mine, others()) {
                prop_assert!(suggestion.highest < suggestion.lowest);
                prop_assert!(violated.contains(&suggestion.on));
            }
        }
    }
}
