#!/usr/bin/perl
# Under the real master: one process for all clients, a polite change of process on HUP, a polite end on TERM, no
# orphan when master dies, and the brake on configuration errors.
use v5.30;
use warnings;
use lib 't/lib';
use Service;
use Test::More;
use Time::HiRes qw(sleep time);

my $master = '/usr/lib/cyrus/bin/master';
plan skip_all => "no $master" unless -x $master;
my $program = program() or plan skip_all => 'cyr_backup is not built';
my ($uid, $gid) = (getpwnam 'cyrus')[2, 3];
plan skip_all => 'no user cyrus' unless defined $uid;
plan skip_all => 'neither root nor cyrus' unless $> == 0 || $> == $uid;

my $dir = tempdir();
my $bin = "$dir/cyr_backup";
system('cp', $program, $bin) == 0 or die 'cannot copy the program';
mkdir "$dir/$_" or die "$dir/$_: $!" for qw(conf spool backup);
spit "$dir/imapd.conf", <<"END";
configdirectory: $dir/conf
partition-default: $dir/spool
backuppartition-default: $dir/backup
proc_path: $dir/conf/proc
mboxname_lockpath: $dir/conf/lock
servername: backup.example
admins: cyrus
allowplaintext: yes
sasl_mech_list: PLAIN
backup_drain: 20
END
system('chown', '-R', "$uid:$gid", $dir) == 0 or die 'cannot chown' if $> == 0;
chmod 0755, $dir;
my $serve = "$bin serve -C $dir/imapd.conf";

sub cyrus_conf {
    my ($services) = @_;
    spit "$dir/cyrus.conf", "START {\n}\nSERVICES {\n$services\n}\nEVENTS {\n}\nDAEMON {\n}\n";
}

# Starts master as user cyrus and returns its pid.
sub start {
    cyrus_conf(@_);
    my $pid = fork // die "fork: $!";
    if ($pid == 0) {
        setpgrp;    # TERM to master goes to its whole process group
        open STDIN, '<', '/dev/null';
        open STDOUT, '>>', "$dir/master.out";
        open STDERR, '>&', \*STDOUT;
        my @as = $> == 0 ? qw(setpriv --reuid=cyrus --regid=mail --init-groups) : ();
        exec @as, $master, '-D', '-C', "$dir/imapd.conf", '-M', "$dir/cyrus.conf", '-p', "$dir/master.pid";
        die "exec: $!";
    }
    kill_later($pid);
    return $pid;
}

sub stop {
    my ($pid) = @_;
    kill TERM => $pid;
    return until_true(sub { waitpid($pid, 1) == $pid }, 10);
}

my $socket = "$dir/conf/backup";
my $entry = qq(backupd cmd="$serve" listen="$socket" prefork=1 maxchild=2);

subtest 'one process serves all clients' => sub {
    my $m = start($entry);
    ok until_true(sub { children($m) == 1 }), 'prefork=1 starts it with master';
    my @c = map { client_unix($socket) } 1 .. 2;
    like greeting($_), qr/^\* OK/, 'greeted' for @c;
    like ask($_, 'NOOP'), qr/^OK Noop completed/, 'answered' for @c;
    my @p = children($m);
    is @p, 1, 'by one process';
    is sessions($p[0]), 2, 'in two threads';
    like ask($_, 'EXIT'), qr/^OK/, 'they leave' for @c;
    ok until_true(sub { sessions($p[0]) == 0 }), 'their threads end';

    my $c = client_unix($socket);
    greeting($c);
    kill KILL => $p[0];
    ok ended($c, 5), 'killed without mercy';
    my $next = client_unix($socket);
    like greeting($next), qr/^\* OK/, 'another process serves';
    ask($next, 'EXIT');
    ok stop($m), 'master ends';
};

subtest 'HUP brings a new process while the old one serves its client' => sub {
    my $m = start($entry);
    my $old_client = client_unix_retry();
    like greeting($old_client), qr/^\* OK/, 'a client';
    my ($old) = children($m);
    my $hup = time;
    kill HUP => $m;
    ok until_true(sub { children($m) == 2 }, 2), 'two processes';
    cmp_ok time - $hup, '<', 1, 'within a second';
    my ($new) = grep { $_ != $old } children($m);
    my $client = client_unix($socket);
    like greeting($client), qr/^\* OK/, 'a new client is served';
    cmp_ok time - $hup, '<', 1.5, 'at once';
    is sessions($new), 1, 'by the new process';
    is sessions($old), 1, 'the old one keeps its own';
    like ask($old_client, 'NOOP'), qr/^OK Noop completed/, 'and answers it';
    sleep 2;
    is_deeply [children($m)], [sort { $a <=> $b } $old, $new], 'these two and no more';
    like ask($old_client, 'NOOP'), qr/^OK/, 'still';
    like ask($old_client, 'EXIT'), qr/^OK/, 'the old client leaves';
    ok until_true(sub { !alive($old) }, 3), 'and the old process with it';
    sleep 0.3;
    is_deeply [children($m)], [$new], 'one is left';
    like ask($client, 'NOOP'), qr/^OK/, 'and serves';
    ask($client, 'EXIT');

    kill HUP => $m;
    ok until_true(sub { !alive($new) }, 3), 'without clients a HUP replaces the process';
    ok until_true(sub { children($m) == 1 }, 3), 'by another';
    my $late = client_unix($socket);
    like greeting($late), qr/^\* OK/, 'that serves';
    ask($late, 'EXIT');
    ok stop($m), 'master ends';
};

subtest 'a second HUP does not leave two draining processes and no server' => sub {
    system('sed', '-i', 's/^backup_drain:.*/backup_drain: 2/', "$dir/imapd.conf");
    my $m = start($entry);
    my $first = client_unix_retry();
    greeting($first);
    my ($old) = children($m);
    kill HUP => $m;
    until_true(sub { children($m) == 2 }, 2);
    my ($new) = grep { $_ != $old } children($m);
    my $second = client_unix($socket);
    greeting($second);
    sleep 1.5;
    kill HUP => $m;
    sleep 0.5;
    my $waiting = client_unix($socket);
    like greeting($waiting, 8), qr/^\* OK/, 'a third process serves when the first ends its drain';
    ok !alive($old), 'the first is gone';
    ok alive($new), 'the second waits for its client';
    like ask($second, 'NOOP'), qr/^OK/, 'and answers it';
    ask($_, 'EXIT') for $second, $waiting;
    ok stop($m), 'master ends';
    system('sed', '-i', 's/^backup_drain:.*/backup_drain: 20/', "$dir/imapd.conf");
};

subtest 'no client is lost while processes change' => sub {
    my $m = start($entry);
    close client_unix_retry();
    my ($greeted, $lost, $slowest, $changes) = (0, 0, 0, 0);
    my $next = time + 0.3;
    while ($changes < 6 || time < $next) {
        if (time >= $next) {
            kill HUP => $m;
            $changes++;
            $next = time + 0.3 + rand 0.2;
        }
        my $begun = time;
        my $c = client_unix($socket);
        if ((greeting($c) // '') =~ /^\* OK/ && (ask($c, 'NOOP') // '') =~ /^OK/) { $greeted++ }
        else { $lost++ }
        my $took = time - $begun;
        $slowest = $took if $took > $slowest;
        close $c if $c;
    }
    is $lost, 0, "none of @{[$greeted + $lost]} clients was turned away";
    cmp_ok $slowest, '<', 2, 'nor kept waiting long';
    ok stop($m), 'master ends';
};

subtest 'TERM is polite' => sub {
    my $m = start($entry);
    my $c = client_unix_retry();
    greeting($c);
    my ($p) = children($m);
    kill TERM => $m;
    sleep 0.1;
    kill TERM => $p;    # as systemd does, which signals every process of the unit
    sleep 1.5;
    ok alive($p), 'the process waits for its client';
    like ask($c, 'NOOP'), qr/^OK Noop completed/, 'and answers it';
    ok alive($m), 'master waits for it';
    is_deeply [children($m)], [$p], 'and starts no other';
    like ask($c, 'EXIT'), qr/^OK/, 'the client leaves';
    ok until_true(sub { !alive($p) }, 3), 'so does the process';
    ok until_true(sub { waitpid($m, 1) == $m }, 3), 'and master';
};

subtest 'TERM to the process alone, and a second one' => sub {
    my $m = start($entry);
    my $c = client_unix_retry();
    greeting($c);
    my ($p) = children($m);
    kill TERM => $p;
    ok until_true(sub { children($m) == 2 }, 2), 'master starts another at once';
    sleep 1.2;
    like ask($c, 'NOOP'), qr/^OK/, 'the first still serves';
    kill TERM => $p;
    ok ended($c, 1), 'a second TERM ends it at once';
    ok until_true(sub { !alive($p) }, 1), 'gone';
    is scalar(children($m)), 1, 'the other remains';
    ok stop($m), 'master ends';
};

subtest 'when master dies the port becomes free' => sub {
    my $port = free_port();
    my $m = start(qq(backupd cmd="$serve" listen="127.0.0.1:$port" proto="tcp4" prefork=1 maxchild=2));
    my $c;
    until_true(sub { $c = client_tcp($port) });
    like greeting($c), qr/^\* OK/, 'a client over TCP';
    my ($p) = children($m);
    kill KILL => $m;
    waitpid $m, 0;
    my $next;
    ok until_true(sub {
        $next = IO::Socket::INET->new(
            LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 1, Proto => 'tcp', ReuseAddr => 1)
    }, 2), 'another can listen';
    ok alive($p), 'the process drains';
    like ask($c, 'NOOP'), qr/^OK/, 'and answers its client';
    close $c;
    ok until_true(sub { !alive($p) }, 3), 'then leaves';
};

subtest 'an entry that leaves cyrus.conf' => sub {
    my $port = free_port();
    my $line = qq(backupd cmd="$serve" listen="127.0.0.1:$port" proto="tcp4" prefork=1 maxchild=2);
    my $other = qq(other cmd="$serve" listen="$socket" prefork=1 maxchild=2);
    my $m = start("$line\n$other");
    my $c;
    until_true(sub { $c = client_tcp($port) });
    greeting($c);
    my ($p) = grep { sessions($_) } children($m);
    cyrus_conf($other);
    kill HUP => $m;
    ok until_true(sub { !client_tcp($port) }, 3), 'the port refuses';
    like ask($c, 'NOOP'), qr/^OK/, 'the client is served';
    ask($c, 'EXIT');
    ok until_true(sub { !alive($p) }, 3), 'then the process leaves';
    until_true(sub { children($m) == 1 }, 15);
    is scalar(children($m)), 1, 'the other entry has one process';
    ok stop($m), 'master ends';
};

subtest 'a configuration error makes master give up' => sub {
    spit "$dir/count", <<"END";
#!/bin/sh
echo start >> $dir/starts
$bin serve -C $dir/missing.conf
status=\$?
echo \$status >> $dir/statuses
exit \$status
END
    chmod 0755, "$dir/count";
    my $m = start(qq(backupd cmd="$dir/count" listen="$socket" prefork=1 maxchild=2));
    my $starts = sub { -e "$dir/starts" ? `wc -l < $dir/starts` + 0 : 0 };
    ok until_true(sub { $starts->() >= 5 }), 'started again some times';
    sleep 2;
    is $starts->(), 5, 'five times and no more';
    is `sort -u $dir/statuses`, "78\n", 'each time with the status of a configuration error';
    ok !client_unix($socket), 'nobody listens';
    ok alive($m), 'master lives';
    ok stop($m), 'and ends';
};

# Master needs a moment until it listens.
sub client_unix_retry {
    my $c;
    until_true(sub { $c = client_unix($socket) });
    return $c;
}

done_testing;
