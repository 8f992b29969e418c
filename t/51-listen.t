#!/usr/bin/perl
# Without master: sockets of our own or from systemd, signals, exit statuses.
use v5.30;
use warnings;
use lib 't/lib';
use Service;
use Test::More;
use Fcntl;
use IO::Socket::INET;
use IO::Socket::UNIX;
use POSIX ();
use Time::HiRes qw(sleep time);

my $program = program() or plan skip_all => 'cyr_backup is not built';
my $uid = getpwnam 'cyrus';
plan skip_all => 'neither root nor cyrus' unless defined $uid && ($> == 0 || $> == $uid);
my $dir = tempdir();
chmod 0755, $dir;
my $bin = "$dir/cyr_backup";
system('cp', $program, $bin) == 0 or die 'cannot copy the program';
mkdir "$dir/$_" or die "$dir/$_: $!" for qw(conf spool backup);
my $config = "$dir/imapd.conf";

sub configure {
    spit $config, <<"END" . join '', map {"$_\n"} @_;
configdirectory: $dir/conf
partition-default: $dir/spool
backuppartition-default: $dir/backup
servername: backup.example
admins: cyrus
backup_drain: 20
END
}
configure();
system('chown', '-R', 'cyrus', $dir) == 0 or die 'cannot chown' if $> == 0;

# Starts the server as user cyrus; `fd3` is a socket to hand over as systemd does.
sub serve {
    my ($opt, @args) = @_;
    my $pid = fork // die "fork: $!";
    if ($pid == 0) {
        open STDERR, '>>', "$dir/err";
        if (my $s = $opt->{fd3}) {
            fcntl $s, F_SETFD, 0;
            POSIX::dup2(fileno $s, 3) if fileno $s != 3;
            $ENV{LISTEN_FDS} = 1;
            $ENV{LISTEN_PID} = $opt->{pid} // $$;
        }
        my @as = $> == 0 ? qw(setpriv --reuid=cyrus --regid=mail --init-groups) : ();
        { exec @as, @{ $opt->{via} // [] }, $bin, 'serve', '-C', $config, @args }
        POSIX::_exit(99);
    }
    return kill_later($pid);
}

# The exit status, or undef if it does not end in time.
sub status {
    my ($pid, $secs) = @_;
    return undef unless until_true(sub { waitpid($pid, 1) == $pid }, $secs // 10);
    return $? & 127 ? 'signal ' . ($? & 127) : $? >> 8;
}

sub greeted {
    my ($connect) = @_;
    my $c;
    until_true(sub { $c = $connect->() }, 5);
    my $greeting = greeting($c) // 'nothing';
    like $greeting, qr/^\* OK/, 'greeted';
    return $c;
}

my $socket = "$dir/conf/s";
my $unix = sub { client_unix($socket) };

subtest 'UNIX socket of our own' => sub {
    my $pid = serve({}, '--socket', $socket);
    my $c = greeted($unix);
    is +(stat $socket)[2] & 077, 0, 'closed to others';
    my $second = serve({}, '--socket', $socket);
    ok status($second), 'a second server does not start';
    like ask($c, 'NOOP'), qr/^OK Noop completed/, 'the first goes on';
    kill KILL => $pid;
    status($pid);
    ok -e $socket, 'killed, its file stays';
    $pid = serve({}, '--socket', $socket);
    ask(greeted($unix), 'EXIT');
    kill TERM => $pid;
    is status($pid), 0, 'TERM ends it with 0';
    ok !-e $socket, 'and its file is gone';
};

subtest 'a hurried end' => sub {
    my $pid = serve({}, '--socket', $socket);
    my $c = greeted($unix);
    kill TERM => $pid;
    sleep 0.1;
    kill TERM => $pid;
    sleep 1.2;
    like ask($c, 'NOOP'), qr/^OK/, 'two TERMs close together are one';
    ok !client_unix($socket), 'nobody new is let in';
    kill INT => $pid;
    my $start = time;
    is status($pid, 3), 75, 'a later one ends it unfinished';
    cmp_ok time - $start, '<', 1, 'at once';
};

subtest 'HUP waits for the client' => sub {
    my $pid = serve({}, '--socket', $socket);
    my $c = greeted($unix);
    kill HUP => $pid;
    sleep 0.5;
    ok !client_unix($socket), 'nobody new is let in';
    like ask($c, 'NOOP'), qr/^OK/, 'the client is answered';
    ask($c, 'EXIT');
    is status($pid), 0, 'ends with 0 when it has left';
};

subtest 'TCP addresses' => sub {
    my ($one, $two) = (free_port(), free_port());
    my $pid = serve({}, '--listen', "127.0.0.1:$one", '--listen', "127.0.0.1:$two");
    my @c = map { my $p = $_; greeted(sub { client_tcp($p) }) } $one, $two;
    is sessions($pid), 2, 'both are served';
    close $_ for @c;
    kill TERM => $pid;
    is status($pid), 0, 'ends';
    configure("backup_listen: 127.0.0.1:$one");
    $pid = serve({});
    close greeted(sub { client_tcp($one) });
    kill TERM => $pid;
    is status($pid), 0, 'the address may come from the configuration';
    configure();
};

subtest 'a socket from systemd' => sub {
    my $s = IO::Socket::UNIX->new(Local => $socket, Listen => 5, Type => SOCK_STREAM) or die $!;
    chmod 0777, $socket;
    my $pid = serve({ fd3 => $s });
    my $c = greeted($unix);
    ask($c, 'EXIT');
    kill TERM => $pid;
    is status($pid), 0, 'ends';
    ok -e $socket, "the file is systemd's to remove";
    my $waiting = client_unix($socket);
    $pid = serve({ fd3 => $s });
    like greeting($waiting), qr/^\* OK/, 'who came in between is served by the next';
    close $waiting;
    kill TERM => $pid;
    is status($pid), 0, 'ends';
    is status(serve({ fd3 => $s, pid => 1 })), 78, "another process' sockets are not taken";
};

subtest 'few descriptors' => sub {
    my $pid = serve({ via => [qw(prlimit --nofile=80:80)] }, '--socket', $socket);
    greeted($unix);
    my @c = grep { defined } map { client_unix($socket) } 1 .. 100;
    until_true(sub { sessions($pid) >= 20 });
    sleep 0.5;
    my $served = sessions($pid);
    cmp_ok $served, '>=', 20, "$served clients are served";
    cmp_ok $served, '<', 76, 'not all of them';
    my $open = () = glob "/proc/$pid/fd/*";
    cmp_ok $open, '<', 80, "$open descriptors, some are left";
    like greeting($c[0]), qr/^\* OK/, 'those inside are served';
    like ask($c[0], 'NOOP'), qr/^OK/, 'well';
    close $_ for splice @c, 0, 60;
    like greeting($c[0], 5), qr/^\* OK/, 'then those who waited';
    close $_ for @c;
    kill TERM => $pid;
    is status($pid), 0, 'ends';
};

subtest 'configuration errors' => sub {
    is status(serve({})), 78, 'nowhere to listen';
    is status(serve({}, '--listen', 'nonsense')), 78, 'no address';
    local $ENV{CYRUS_SERVICE} = 'backupd';
    is status(serve({})), 78, 'CYRUS_SERVICE without its descriptors';
};

done_testing;
