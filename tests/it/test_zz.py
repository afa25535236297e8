import pytest, json, os
from test_03_precheck import *
def test_x(pair, make_job):
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    pair.a.sql("CREATE TABLE no_key (v text)")
    pair.a.sql("CREATE TABLE child (id int PRIMARY KEY references t, v text)")
    pair.a.sql("CREATE UNLOGGED TABLE unl (id int PRIMARY KEY)")
    pair.b.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    j = make_job(pair)
    for a in (["check", j.path, "--json"], ["check", j.path], ["check", j.path, "--connect"], ["check", j.path, "--connect", "--json"], ["run", j.path]):
        print(a); c, o, e = j.command(*a); print(c); print(o); print("ERR", e)
    j.change(a={"port": 1}, b={"user": "nobody", "password": "x", "host": "127.0.0.1"})
    for a in (["check", j.path, "--json"], ["check", j.path], ["check", j.path, "--connect", "--json"]):
        print(a); c, o, e = j.command(*a); print(c); print(o); print("ERR", e)
    assert 0
