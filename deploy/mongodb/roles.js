// Creates, or brings up to date, the roles that planners, workers and people need, and no more. Run it as a user
// administrator, in the folder of this file, before a new watched collection is deployed:
//
//   DATABASE=shop COLLECTIONS=orders,customers mongosh "$ADMIN_URL" roles.js
//
// DATABASE     the database of the app: reactive_database, or what the connection string names
// COLLECTIONS  what its tasks watch, separated by commas
// SUFFIX       reactive_records_suffix, where it is set
// GLOBALS      reactive_globals_collection, where it is set
// PREFIX       begins the names of the roles: reactivePlanner, reactiveWorker, reactiveOperator (CLI and dashboard),
//              reactiveViewer (a dashboard that is read only). One for each app where several share a cluster
//
// The roles are in `admin`, for only there may one name the oplog. Grant them to users of your own. What a handler does
// itself, such as writing to another collection, needs a role of yours beside reactiveWorker.

const { DATABASE, COLLECTIONS, SUFFIX = "_tasks", GLOBALS = "_celery_reactive", PREFIX = "reactive" } = process.env;
if (!DATABASE || !COLLECTIONS) {
  throw new Error("expected DATABASE and COLLECTIONS in the environment, such as DATABASE=shop COLLECTIONS=orders");
}

const watched = COLLECTIONS.split(",").map((name) => name.trim());
const collectionsOf = {
  database: [{ db: DATABASE, collection: "" }],
  watched: watched.map((name) => ({ db: DATABASE, collection: name })),
  records: watched.map((name) => ({ db: DATABASE, collection: name + SUFFIX })),
  globals: [{ db: DATABASE, collection: GLOBALS }],
  oplog: [{ db: "local", collection: "oplog.rs" }],
};

const admin = db.getSiblingDB("admin");
const roles = JSON.parse(require("fs").readFileSync("roles.json", "utf8"));
for (const [name, grants] of Object.entries(roles)) {
  const role = PREFIX + name;
  const privileges = grants.flatMap(({ on, actions }) => collectionsOf[on].map((resource) => ({ resource, actions })));
  const known = admin.runCommand({ rolesInfo: role }).roles.length > 0;
  const reply = admin.runCommand({ [known ? "updateRole" : "createRole"]: role, privileges, roles: [] });
  if (!reply.ok) {
    throw new Error(`${role}: ${reply.errmsg}`);
  }
  print(`${role}: ${known ? "updated" : "created"}`);
}
